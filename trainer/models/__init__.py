"""Flow models by family, one file each."""
