"""One training loop: MobileOne from nothing, and the fine-tuning of a quantized chain."""
