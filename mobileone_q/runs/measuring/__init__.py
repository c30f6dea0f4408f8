"""Measurements of a run: accuracy and latency of its engines, and how far their answers lie apart."""
