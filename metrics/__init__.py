"""What is measured: torchmetrics Metrics that keep one value per image, and the colorization protocols."""
