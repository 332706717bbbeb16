"""Settings: what they are, and how they are read, checked and named."""
