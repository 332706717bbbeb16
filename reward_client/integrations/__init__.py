"""Adapters to the reward functions that other trainers expect, one file each."""
