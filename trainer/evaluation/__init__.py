"""Held-out evaluations, their statistics and alarms."""
