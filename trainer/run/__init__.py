"""A training run: the loop, its epochs and updates, its state on disk."""
