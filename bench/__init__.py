"""Measurements, run by ``make bench``. Figures, never pass or fail."""
