"""MobileOne: the model, its fusion, its quantized form, and the way to an engine.

Nothing heavy is imported here, so that ``mobileone-q --help`` answers at once.
"""

__version__ = "0.1.0"
