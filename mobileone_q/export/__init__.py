"""From a model to ONNX, and to what DLA needs beside it."""
