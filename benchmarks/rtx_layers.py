"""What TensorRT for RTX makes of a graph: its layers, read from the builder's verbose log. No GPU is needed.

    python benchmarks/rtx_layers.py runs/s0/fp32.onnx runs/s0/int8.onnx --compute-capability 86

At ``ProfilingVerbosity.DETAILED`` the builder ends its verbose log with every layer of the engine: its
name, the types of its inputs and outputs, and its kernel. An engine inspector would say the same, but
needs a GPU to load the engine.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAYER = re.compile(r"^Name: (\S+), LayerType: (\w+), ", re.MULTILINE)
TACTIC = re.compile(r"TacticName: (\S+?),")
TYPE = re.compile(r"Datatype: (\w+)")
CONVOLUTIONS = ("correlation",)
WIDENS, FAKE_QUANTIZES = "CastMulCast", "MinMaxRoun"


@dataclass(frozen=True)
class Layer:
    """A layer of the engine.

    ``inputs`` and ``outputs`` are types such as ``Float``, those of constants left out; ``kernel`` is the
    name of its kernel, made up of what it does.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kernel: str

    @property
    def is_convolution(self) -> bool:
        return self.kind in CONVOLUTIONS


def read_layers(log: str) -> list[Layer]:
    """The layers that a builder's verbose log lists."""
    layers = []
    for line in log.splitlines():
        match = LAYER.match(line)
        if match is None:
            continue
        inputs, _, rest = line.partition("Constants:")
        outputs = rest.partition("Outputs:")[2]
        tactic = TACTIC.search(outputs)
        layers.append(
            Layer(
                match[1], match[2], tuple(TYPE.findall(inputs)), tuple(TYPE.findall(outputs)),
                tactic[1] if tactic else "",
            )
        )  # fmt: skip
    return layers


def summarize(layers: list[Layer]) -> dict[str, Any]:
    """Counts: all layers, convolutions by their types, and kernels that stand in for INT8."""
    convolutions = Counter(
        f"{'+'.join(sorted(set(layer.inputs)))} -> {'+'.join(sorted(set(layer.outputs)))}"
        for layer in layers
        if layer.is_convolution
    )
    return {
        "layers": len(layers),
        "convolutions": dict(convolutions),
        "widen_weights": sum(
            WIDENS in layer.kernel and FAKE_QUANTIZES not in layer.kernel for layer in layers
        ),
        "fake_quantize": sum(FAKE_QUANTIZES in layer.kernel for layer in layers),
        "int8_activations": sum("Int8" in layer.inputs + layer.outputs for layer in layers),
    }


def build_log(onnx_path: Path, capability: int) -> str:
    """The builder's verbose log for one compute capability, such as 86."""
    trt: Any = importlib.import_module("tensorrt_rtx")

    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append(message)

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_path.read_bytes()):
        raise SystemExit(f"TensorRT for RTX cannot parse {onnx_path}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), 0)
    profile = builder.create_optimization_profile()
    image = tuple(network.get_input(0).shape)[1:]
    profile.set_shape("input", (1, *image), (1, *image), (1, *image))
    config.add_optimization_profile(profile)
    builder.build_serialized_network(network, config)
    return "\n".join(logger.lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="What TensorRT for RTX makes of a graph.")
    parser.add_argument("graphs", type=Path, nargs="+")
    parser.add_argument("--compute-capability", type=int, default=86)
    args = parser.parse_args()
    print("| graph | layers | convolutions | widen weights | fake-quantize | Int8 activations |")
    print("|---|---|---|---|---|---|")
    for graph in args.graphs:
        row = summarize(read_layers(build_log(graph, args.compute_capability)))
        kinds = ", ".join(f"{count} {kind}" for kind, count in row["convolutions"].items())
        numbers = (row["widen_weights"], row["fake_quantize"], row["int8_activations"])
        print(f"| {graph.name} | {row['layers']} | {kinds} | {' | '.join(map(str, numbers))} |")


if __name__ == "__main__":
    main()
