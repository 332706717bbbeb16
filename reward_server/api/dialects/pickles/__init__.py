"""Pickles of plain data, read without executing them: see `reader.py`."""
