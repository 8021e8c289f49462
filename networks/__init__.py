"""What is learned and what is loaded: one architecture a file."""
