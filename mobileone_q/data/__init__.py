"""Images and arrays: where they come from, how they are prepared, and how they are batched."""
