"""Side by side: this project and other post-training quantizers on MobileOne-S0.

    python benchmarks/peers.py --weights mobileone_s0_fused.pth --data calib/ --eval-data val/

Same weights, calibration images, evaluation images and scorer (ONNX Runtime on the CPU) for all.
Each peer runs in its own environment, made from ``benchmarks/peers/TOOL.txt`` under ``--cache``.
Seconds are of calibration alone. Prints a Markdown table, and writes it to ``--output`` if given;
a peer that fails has a row that says why. "TensorRT form" is read from the graph: int8 codes with
zero-point 0, per-tensor activations, int8 weights, float biases, and all convolutions quantized.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import numpy_helper

from calibrate.data import Batches, ImageFolder
from calibrate.recipe import Recipe, calibrate
from mobileone_q.checkpoints import load_model
from mobileone_q.engines import BuildOptions, backend
from mobileone_q.errors import MobileOneQError
from mobileone_q.evaluate import collect_logits, compare
from mobileone_q.export import export_onnx
from mobileone_q.fuse import fuse
from mobileone_q.preprocess import Preprocessing

SCRIPTS = Path(__file__).parent / "peers"
PEERS = (
    ("onnxruntime", "minmax"),
    ("onnxruntime", "best-symmetric"),
    ("onnxruntime", "best-asymmetric"),
    ("nncf", "full-correction"),
    ("modelopt", "entropy"),
    ("esp_ppq", "trt-int8"),
    ("torchao", "xnnpack"),
    ("torchao", "symmetric"),
)
OWN = ("tensorrt", "onnxruntime")
HEADER = ("tool", "setting", "top-1", "agreement", "KL, nats", "seconds", "TensorRT form", "RTX builds it")
TIMEOUT_S = 900


class PeerError(Exception):
    """Why a peer has no figures, in one line."""


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:160].replace("|", "/") if lines else "no reason given"


def execute(command: list[str]) -> str:
    """Standard output of a command, stopped after ``TIMEOUT_S``."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=clean_env())
    except subprocess.TimeoutExpired:
        raise PeerError(f"no result within {TIMEOUT_S} s") from None
    if done.returncode:
        raise PeerError(last_line(done.stderr or done.stdout))
    return done.stdout


def clean_env() -> dict[str, str]:
    """The environment less this project's own import path."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def environment(tool: str, cache: Path) -> Path:
    """Python of the tool's own environment; made again when its requirements change."""
    requirements = SCRIPTS / f"{tool}.txt"
    if not requirements.is_file():
        raise PeerError("not written yet")
    folder = cache / tool
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    if not stamp.is_file() or stamp.read_text() != requirements.read_text():
        execute([sys.executable, "-m", "venv", "--clear", str(folder)])
        execute([str(python), "-m", "pip", "install", "-q", "-r", str(requirements)])
        stamp.write_text(requirements.read_text())
    return python


def run_peer(tool: str, setting: str, args: argparse.Namespace, folder: Path) -> tuple[Path, float]:
    """(quantized graph, seconds) of one tool."""
    python, output = environment(tool, args.cache), folder / f"{tool}-{setting}.onnx"
    paths = [folder / "fp32.onnx", folder / "images.npy", output]
    printed = execute([str(python), str(SCRIPTS / f"{tool}_peer.py"), setting, *map(str, paths)])
    if not output.is_file():
        raise PeerError("it wrote no graph")
    return output, json.loads(printed.splitlines()[-1])["seconds"]


class Graph:
    """Producers, consumers and constants of an ONNX graph, by tensor name."""

    def __init__(self, path: Path) -> None:
        graph = onnx.load(str(path)).graph
        self.nodes = list(graph.node)
        self.constants = {t.name: t for t in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = node.attribute[0].t
        self.producer = {name: node for node in self.nodes for name in node.output}

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.constants[name])


def tensorrt_form(path: Path) -> str:
    """``yes``, or ``no`` and the first thing that TensorRT would not take as it is meant."""
    graph = Graph(path)
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = graph.array(node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
            if zero.dtype != np.int8:
                return f"no: {zero.dtype} codes"
            if zero.any():
                return "no: zero-points"
            if node.op_type == "QuantizeLinear" and graph.array(node.input[1]).size > 1:
                return "no: per-channel activations"
    kernels = [node for node in graph.nodes if node.op_type in ("Conv", "Gemm", "MatMul")]
    bare = sum(not all(dequantized(graph, name) for name in node.input[:2]) for node in kernels)
    if bare:
        return f"no: {bare} of {len(kernels)} layers are not INT8"
    return "yes"


def dequantized(graph: Graph, name: str) -> bool:
    """Whether a tensor comes from a DequantizeLinear, through at most a change of shape."""
    node = graph.producer.get(name)
    while node is not None and node.op_type in ("Transpose", "Reshape", "Flatten"):
        node = graph.producer.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"


def rtx_builds(path: Path) -> str:
    """``yes``, or why TensorRT for RTX does not build the graph."""
    options = BuildOptions(compute_capabilities=(86,))
    try:
        backend("tensorrt-rtx").build(path, path.with_suffix(".rtx"), options)
    except MobileOneQError as error:
        return f"no: {str(error)[-100:]}".replace("|", "/").replace("\n", " ")
    return "yes"


class Benchmark:
    """The network, its images and the common scorer."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.fused = fuse(load_model(args.weights, "s0")[0])
        self.calibration = Batches.choose(ImageFolder(args.data), Preprocessing(), args.images, args.seed)
        self.evaluation = Batches.choose(ImageFolder(args.eval_data), Preprocessing())
        np.save(folder / "images.npy", np.concatenate([pixels for pixels, _ in self.calibration]))
        export_onnx(self.fused, folder / "fp32.onnx")
        self.fp32, self.labels = self.logits(folder / "fp32.onnx")

    def logits(self, path: Path):
        factory, engine = backend("onnxruntime"), path.with_suffix(".engine.onnx")
        factory.build(path, engine, BuildOptions(threads=1))
        (values,), labels = collect_logits([factory.load(engine, threads=1)], self.evaluation)
        return values, labels

    def run_own(self, target: str) -> tuple[Path, float]:
        started = time.perf_counter()
        quantized = calibrate(self.fused, self.calibration, Recipe(target=target))
        seconds = time.perf_counter() - started
        path = self.folder / f"own-{target}.onnx"
        export_onnx(quantized, path)
        return path, seconds

    def row(self, tool: str, setting: str) -> list[str]:
        try:
            own = tool == "mobileone-q"
            path, seconds = self.run_own(setting) if own else run_peer(tool, setting, self.args, self.folder)
            result = compare(self.fp32, self.logits(path)[0], self.labels)
        except (PeerError, MobileOneQError) as error:
            return [tool, setting, f"failed: {error}", *["–"] * (len(HEADER) - 3)]
        top1 = f"{result.int8.top1:.4f}" if result.int8 else "–"
        figures = [top1, f"{result.agreement:.4f}", f"{result.kl:.4f}", f"{seconds:.1f}"]
        return [tool, setting, *figures, tensorrt_form(path), rtx_builds(path)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("weights", "data", "eval-data"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "mobileone-q-peers")
    parser.add_argument("--output", type=Path, help="file to write the table to")
    parser.add_argument("--only", help="run one tool")
    args = parser.parse_args()
    args.cache = args.cache.resolve()
    lines = []
    with TemporaryDirectory() as folder:
        benchmark = Benchmark(args, Path(folder))
        for cells in (HEADER, ["---"] * len(HEADER)):
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
        for tool, setting in (*(("mobileone-q", target) for target in OWN), *PEERS):
            if args.only in (None, tool):
                lines.append(f"| {' | '.join(benchmark.row(tool, setting))} |")
                print(lines[-1], flush=True)
    if args.output:
        args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
