"""What a run cost and won: typed records (schema), and how they look on a terminal and as HTML."""
