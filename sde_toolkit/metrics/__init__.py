"""How far samples are from data: distances, features, judges, and records. No solver is run here."""
