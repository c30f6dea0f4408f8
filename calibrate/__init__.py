"""Post-training quantization: from a fused network and real images to integer codes and scales."""

import mobileone_q as mobileone_q  # sets what OpenMP reads once, when the modules here import torch
