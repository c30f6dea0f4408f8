"""The networks: with branches, fused, quantized, and quantized while training."""
