"""Scorers that misbehave in one way each, for tests of the server around them."""
