"""Other people's weights: download, read safely, rename, load, write."""
