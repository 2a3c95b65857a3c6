"""Metrics of samples, features, judges, and records of evaluations. No solver runs here."""
