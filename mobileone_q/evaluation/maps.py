"""How well the maps of a backbone survive INT8 and FP16: cosine similarity and signal-to-noise ratio.

The dataclass :class:`MapSimilarity` is also a section of a run's report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mobileone_q.evaluation.streaming import CosineSum

if TYPE_CHECKING:  # who reads a report does not wait for torch
    from torch import Tensor

    from mobileone_q.models.fused import FusedModel

Maps = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class MapSimilarity:
    """One map (C, H, W) beside that of the FP32 network, over ``images`` images.

    ``cosine`` is the mean over images of the similarity of whole maps, and ``lowest`` that of the worst
    image. ``snr_db`` is the energy of the FP32 map over that of the difference, in decibels; None without
    any difference. ``engine`` says what gave the map.
    """

    name: str
    shape: tuple[int, ...]
    images: int
    cosine: float
    lowest: float
    snr_db: float | None
    engine: str


class MapSum:
    """Adds up how one set of maps differs from FP32's, batch by batch."""

    def __init__(self) -> None:
        self._cosines: dict[str, CosineSum] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._energies: dict[str, NDArray[np.float64]] = {}

    def add(self, fp32: Maps, others: Maps) -> None:
        """Sum a batch of maps (N, C, H, W) by name."""
        for name, reference in fp32.items():
            difference = reference.astype(np.float64) - others[name]
            energies = np.array([np.square(reference, dtype=np.float64).sum(), np.square(difference).sum()])
            self._energies[name] = self._energies.get(name, np.zeros(2)) + energies
            self._cosines.setdefault(name, CosineSum()).add(reference, others[name])
            self._shapes[name] = reference.shape[1:]

    def result(self, engine: str) -> tuple[MapSimilarity, ...]:
        """The similarity of each map over the images so far."""
        rows = []
        for name, total in self._cosines.items():
            cosine, (signal, noise) = total.result(), self._energies[name]
            shape, snr_db = self._shapes[name], decibels(signal, noise)
            rows.append(MapSimilarity(name, shape, total.images, cosine.mean, cosine.lowest, snr_db, engine))
        return tuple(rows)


def decibels(signal: float, noise: float) -> float | None:
    """A ratio of energies in decibels; None without noise, or without a signal."""
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


class HalfSimulation:
    """A fused network whose weights, biases and outputs of blocks are rounded to float16.

    Products are summed in float32, as tensor cores do. ONNX Runtime's float16 on a CPU says nothing of a
    device's, so this stands in for an FP16 engine.
    """

    def __init__(self, fused: FusedModel) -> None:
        self._model = type(fused)(fused.arch)
        self._model.load_state_dict({key: _half(value) for key, value in fused.state_dict().items()})

    def maps(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """The network's maps (N, C, H, W) by name."""
        import torch

        x, names, outputs = torch.from_numpy(batch), self._model.arch.map_names, {}
        with torch.no_grad():
            for name, block in self._model.blocks():
                x = _half(block(_half(x)))
                if name in names:
                    outputs[names[name]] = x.numpy()
        return outputs


def _half(x: Tensor) -> Tensor:
    return x.half().float() if x.is_floating_point() else x
