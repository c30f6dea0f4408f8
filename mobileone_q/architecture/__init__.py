"""Architectures: blocks, the named variants of the paper, face networks, and networks from YAML."""
