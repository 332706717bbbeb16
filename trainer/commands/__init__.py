"""The commands of `flow-train`, a file for each kind."""
