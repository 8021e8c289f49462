"""What watches a run and can be switched off: averages, checkpoints, guards, pictures, speed and loggers."""
