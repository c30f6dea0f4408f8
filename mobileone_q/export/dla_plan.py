"""What of a graph DLA runs: its loadables, its switches to the GPU, its convolutions without a scale.

Assumptions: TensorRT runs nodes in the order of the graph, and every stretch of nodes that DLA can run
becomes one loadable. Sources: NVIDIA/Deep-Learning-Accelerator-SW, operators/README.md (which operators
DLA runs through TensorRT); TensorRT 11.4.1, "DLA Supported Layers and Restrictions" (at most 16
loadables a core; pooling windows of 8 at most). A Flatten is counted on the GPU: DLA's Shuffle layer
keeps four dimensions. Whether TensorRT does as counted here only the device can tell: read the engine's
layers there.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import onnx

from mobileone_q.models.dla import LARGEST_WINDOW

MOST_LOADABLES = 16
NATIVE = ("Conv", "Relu", "Clip", "Sigmoid", "Mul", "Add")
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")  # TensorRT folds them into the layers around them


@dataclass(frozen=True)
class DlaPlan:
    """What is expected of a graph on a DLA core.

    Attributes:
        convolutions: how many there are, those of squeeze-and-excite and the classifier included.
        without_scale: names of those whose output has no scale, which DLA runs in FP16.
        on_gpu: names of the nodes that DLA does not run.
        loadables: stretches of nodes that DLA runs.
        switches: changes between DLA and GPU, in both directions.
    """

    convolutions: int
    without_scale: tuple[str, ...]
    on_gpu: tuple[str, ...]
    loadables: int
    switches: int

    def describe(self) -> str:
        """The plan in one line."""
        int8 = self.convolutions - len(self.without_scale)
        text = (
            f"on DLA, by NVIDIA's table of operators: {int8} of {self.convolutions} convolutions in INT8, "
            f"{_count(self.loadables, 'loadable')} (at most {MOST_LOADABLES} a core), "
            f"{_count(self.switches, 'switch', 'switches')} between DLA and GPU"
        )
        names = ", ".join(self.on_gpu[:3]) + (", ..." if len(self.on_gpu) > 3 else "")
        return f"{text}; on the GPU: {names}" if names else text


def dla_plan(onnx_path: Path, cache_path: Path | None = None) -> DlaPlan:
    """The plan of a graph with Q/DQ, or of one whose scales stand in a calibration cache."""
    graph = onnx.load(onnx_path).graph
    named = _cached_tensors(cache_path) if cache_path is not None else _quantized_tensors(graph)
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    nodes = [node for node in graph.node if node.op_type not in QUANTIZERS]
    runs = [on_dla for on_dla, _ in groupby(nodes, _runs_on_dla)]
    return DlaPlan(
        convolutions=len(convolutions),
        without_scale=tuple(node.name for node in convolutions if node.output[0] not in named),
        on_gpu=tuple(node.name for node in nodes if not _runs_on_dla(node)),
        loadables=sum(runs),
        switches=len(runs) - 1,
    )


def _runs_on_dla(node: onnx.NodeProto) -> bool:
    if node.op_type != "AveragePool":
        return node.op_type in NATIVE
    window = next(attribute.ints for attribute in node.attribute if attribute.name == "kernel_shape")
    return max(window) <= LARGEST_WINDOW


def _cached_tensors(cache_path: Path) -> Collection[str]:
    """Names of the tensors that have a scale in a calibration cache."""
    _, *lines = cache_path.read_text(encoding="utf-8").splitlines()
    return {line.rpartition(": ")[0] for line in lines}


def _quantized_tensors(graph: onnx.GraphProto) -> Collection[str]:
    """Names of the tensors that a QuantizeLinear reads, at once or behind an activation."""
    named = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    activations = [node for node in graph.node if node.op_type in ("Relu", "Clip")]
    return named | {node.input[0] for node in activations if node.output[0] in named}


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
