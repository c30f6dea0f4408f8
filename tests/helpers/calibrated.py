"""Small networks, fused and calibrated: a process makes each once and copies it for every test that asks.

Calibrating S4 at 32×32 takes six seconds, which is most of what a test of its graph costs.
"""

from __future__ import annotations

import copy
import functools

from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.architecture.spec import Architecture
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel
from tests.helpers.networks import random_images, random_model


@functools.lru_cache(maxsize=8)
def _fused(arch: Architecture) -> FusedModel:
    return fuse_branches(random_model(arch))


@functools.lru_cache(maxsize=24)
def _calibrated(arch: Architecture, recipe: Recipe, images: int) -> QuantizedModel:
    return calibrate(fused_network(arch), [(random_images(arch, images).numpy(), None)], recipe)


def fused_network(arch: Architecture) -> FusedModel:
    """``random_model(arch)``, fused; a copy, which a test may change."""
    return copy.deepcopy(_fused(arch))


def calibrated_network(arch: Architecture, recipe: Recipe, images: int = 8) -> QuantizedModel:
    """:func:`fused_network`, calibrated on one batch of random images; a copy, which a test may change."""
    return copy.deepcopy(_calibrated(arch, recipe, images))
