"""Files that are copied to the device as they are: they import neither torch nor this project."""
