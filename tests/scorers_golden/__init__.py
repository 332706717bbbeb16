"""Scorers with weights and golden scores, in numpy."""
