"""Finds out before training what a scorer can be fooled by, and what it does not see."""
