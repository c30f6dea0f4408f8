"""The run folder on disk: its files, their integrity, how it appears whole, and all runs under a folder."""
