"""What the five commands do: options, results written to files, figures and pages."""
