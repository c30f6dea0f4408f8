"""Run folders, and everything that is done with them."""
