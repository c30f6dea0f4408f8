"""Small networks, fused and calibrated: each is made once and copied for every test that asks.

Fusing S4 at 32×32 takes a second and calibrating it six, which is most of what a test of it costs.
"""

from __future__ import annotations

import copy
import functools

from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel
from tests.helpers.networks import random_images, random_model, small


@functools.cache
def _fused(name: str) -> FusedModel:
    return fuse_branches(random_model(small(name)))


@functools.cache
def _calibrated(name: str, recipe: Recipe, images: int) -> QuantizedModel:
    fused = fused_network(name)
    return calibrate(fused, [(random_images(fused.arch, images).numpy(), None)], recipe)


def fused_network(name: str = "s0") -> FusedModel:
    """A variant at 32×32 with random weights, fused; a copy, which a test may change."""
    return copy.deepcopy(_fused(name))


def calibrated_network(
    name: str = "s0", target: str = "tensorrt", images: int = 4, **settings: object
) -> QuantizedModel:
    """:func:`fused_network` calibrated on random images; ``settings`` are fields of Recipe. A copy."""
    return copy.deepcopy(_calibrated(name, Recipe(target=target, **settings), images))
