"""What is made of finished reports: comparisons, thumbnails for the page, an archive for an issue."""
