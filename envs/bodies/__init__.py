"""Bodies: the mechanisms in which skills are discovered, and on which tasks are set."""
