"""Folders that another machine builds its engine from: bundles, and folders for Triton and DeepStream."""
