"""The search of `tune`: what it works on, how it races graphs, its log, and the file of its choice."""
