"""Trained networks that ship with the package, each a folder. No code."""
