"""Prompt sets: generators, and downloads of the published ones."""
