"""Post-training quantization: from a fused network and real images to integer codes and scales."""
