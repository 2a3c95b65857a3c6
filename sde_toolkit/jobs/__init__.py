"""Work in parts, for one process or several, taken up again where it stopped; and what identifies it."""
