"""Training: the `train` command, and the recipe that makes a small model from nothing."""
