"""Judging samples: what a trained model's draws are worth, measured against real data."""
