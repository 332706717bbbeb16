"""Adapters of flow models, one file per family."""
