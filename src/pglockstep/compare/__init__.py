"""Proving that two databases are the same, or naming what differs: rows, schema and sequences."""
