"""Compares prediction files with the figures and claims of a paper; see `scripts/report.py`."""
