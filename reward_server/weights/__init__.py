"""Weight files: what each scorer needs, where it comes from, where it lies, and its digest."""
