"""Scorers that other reward servers run: found by name, watched, balanced, failed over."""
