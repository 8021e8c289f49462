"""What is measured: torchmetrics Metrics, most of which keep one value per image."""
