"""The numeric heart: statistics of real images, equalization, ranges, correction."""
