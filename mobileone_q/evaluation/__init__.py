"""Measure: accuracy, latency, and what a device allows."""
