"""Images and arrays: where they come from, how they are prepared, how they are batched."""
