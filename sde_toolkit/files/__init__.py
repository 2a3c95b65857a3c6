"""Files of every kind, read with bounded work and written whole. What stands in them is known elsewhere."""
