"""Sampling groups of images, and the same step again for the update."""
