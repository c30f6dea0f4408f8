"""The engines of a run: the graphs they are built from, what they are fed, and what they predict."""
