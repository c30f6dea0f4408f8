"""TensorRT 8.5 to 11, and TensorRT for RTX."""
