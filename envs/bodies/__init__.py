"""Bodies: the mechanisms in which skills are discovered."""
