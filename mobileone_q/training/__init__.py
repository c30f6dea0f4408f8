"""One training loop for two jobs: training a MobileOne, and fine-tuning a quantized one.

Nothing here knows about run folders: models and inputs come in, models come out.
"""
