"""Work in parts, for one process or several, that continues where it stopped; and what identifies it."""
