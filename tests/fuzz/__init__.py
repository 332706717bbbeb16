"""Broken input for every parser: `make fuzz RUNS=1000000`; a short form runs with the tests."""
