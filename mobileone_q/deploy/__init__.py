"""What goes to the device as it is: files here import neither torch nor this project."""
