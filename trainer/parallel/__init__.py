"""Several processes: collectives and sharded models."""
