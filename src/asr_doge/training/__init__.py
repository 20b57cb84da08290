"""Training: the `train` verb, and the recipe that makes a small model from nothing."""
