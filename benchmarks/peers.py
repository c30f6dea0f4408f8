"""Side by side: this project and other post-training quantizers on MobileOne-S0.

    python benchmarks/peers.py --weights mobileone_s0_fused.pth --data calib/ --eval-data val/

All have the same weights, calibration images, evaluation images and scorer (ONNX Runtime on the CPU).
Each peer runs in its own environment, which is made under ``--cache`` from the pins in
``benchmarks/peers/TOOL.txt`` (Python 3.11 or 3.12). Set ``PIP_EXTRA_INDEX_URL`` to PyTorch's index of
CPU wheels to do without CUDA's packages. Prints a Markdown table. ``--output`` also writes it to a
file, with a JSON file beside it. A peer that fails has a row that says why.

Seconds are counted from the FP32 model's file and images in memory to the written INT8 graph, on
``--threads`` threads, one tool at a time. Reading images and importing libraries are left out.
"TensorRT form" is read from the graph, see :func:`tensorrt_form`. "RTX builds it" says only that
TensorRT for RTX accepts the graph. It reads unsigned codes as signed ones.

With ``--draws N`` the images of both folders form one pool, as in ``benchmarks/cross_validation.py``: N
times, calibration gets ``--images`` of them, drawn anew, and all others are evaluated on. A row is then
the mean over the draws, with the least and the most.

With ``--rounds N`` the tools only take turns, N times, and their times are compared: of each, the median and
the least and the most, the seconds of the processor, and the median of what it took in each round beside the
first one of ``--only``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from mobileone_q import __version__, engines
from mobileone_q.checkpoints.load import load_model
from mobileone_q.data.batches import Batches
from mobileone_q.data.sources import ImageFolder
from mobileone_q.engines import BuildOptions
from mobileone_q.errors import MobileOneQError
from mobileone_q.evaluation.streaming import compare, each_batch
from mobileone_q.export.graph import export_onnx
from mobileone_q.files import write_json, write_text
from mobileone_q.models.fuse import fuse_branches

SCRIPTS = Path(__file__).parent / "peers"
OWN = "mobileone_q"
SETTINGS = {
    OWN: ("tensorrt", "onnxruntime"),
    "onnxruntime": ("minmax", "best-symmetric", "best-asymmetric"),
    "nncf": ("full-correction", "rescaled-by-hand"),
    "modelopt": ("entropy",),
    "esp_ppq": ("corrected", "corrected-layerwise"),
    "torchao": ("xnnpack", "x86", "symmetric", "grids-tensorrt", "grids-onnxruntime"),
}
IMPORT_OURS = (OWN, "torchao")  # torchao's script also uses this project's quantizer
DRAWN_HEADER = ("tool", "setting", "KL, nats: mean (least to most)", "agreement", "seconds")
HEADER = ("tool", "setting", "top-1", "agreement", "KL, nats", "seconds", "TensorRT form", "RTX builds it")
ROUNDS_HEADER = ("tool", "setting", "seconds: median (least to most)", "ratio", "CPU seconds", "ratio")
NONE = "–"
INSTALL_TIMEOUT_S, TIMEOUT_S = 3600, 1800
OPTIONS = BuildOptions(compute_capabilities=(86,))


class PeerError(Exception):
    """Why a peer has no figures, in one line."""


@dataclass(frozen=True)
class Row:
    """A line of the table; a figure that was not measured is None."""

    tool: str
    setting: str
    top1: float | None = None
    agreement: float | None = None
    kl: float | None = None
    seconds: float | None = None
    tensorrt_form: str = NONE
    rtx_builds: str = NONE
    failure: str | None = None

    def markdown(self) -> str:
        if self.failure:
            return line([self.tool, self.setting, f"failed: {self.failure}", *[NONE] * (len(HEADER) - 3)])
        figures = [
            NONE if value is None else f"{value:.{digits}f}"
            for value, digits in ((self.top1, 4), (self.agreement, 4), (self.kl, 4), (self.seconds, 1))
        ]
        builds = self.rtx_builds.split(":")[0]  # the JSON file has TensorRT's reason
        return line([self.tool, self.setting, *figures, self.tensorrt_form, builds])


@dataclass(frozen=True)
class Spent:
    """What a tool took: seconds on the clock, and those of the processor, all threads together."""

    seconds: float
    cpu_seconds: float


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def label(tool: str) -> str:
    """The tool and its version, which the first pin of its requirements gives."""
    if tool == OWN:
        return f"mobileone-q {__version__}"
    return (SCRIPTS / f"{tool}.txt").read_text().split()[0].replace("==", " ")


def execute(command: list[str], environment: dict[str, str], timeout_s: int) -> str:
    """Standard output of a command."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment)
    except subprocess.TimeoutExpired:
        raise PeerError(f"no result within {timeout_s} s") from None
    if done.returncode:
        lines = [text.strip() for text in (done.stderr or done.stdout).splitlines() if text.strip()]
        raise PeerError(lines[-1][:160] if lines else f"exit code {done.returncode}")
    return done.stdout


def variables(own: bool, threads: int) -> dict[str, str]:
    """The environment variables on ``threads`` threads; with ``own``, also this project's import path."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    values = {**os.environ, **dict.fromkeys(names, str(threads))}
    values.pop("PYTHONPATH", None)
    return {**values, "PYTHONPATH": str(SCRIPTS.parents[1])} if own else values


def environment(tool: str, cache: Path) -> Path:
    """The Python of the tool's own environment, which is made again when its requirements change."""
    if tool == OWN:
        return Path(sys.executable)
    requirements = SCRIPTS / f"{tool}.txt"
    folder = cache / tool
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    if not stamp.is_file() or stamp.read_text() != requirements.read_text():
        print(f"installing {label(tool)} in {folder}", file=sys.stderr)
        install = [str(python), "-m", "pip", "install", "-q", "-r", str(requirements)]
        for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], install):
            execute(command, variables(False, 1), INSTALL_TIMEOUT_S)
        stamp.write_text(requirements.read_text())
    return python


class Graph:
    """Producers and constants of an ONNX graph, by tensor name."""

    def __init__(self, path: Path) -> None:
        graph = onnx.load(str(path)).graph
        self.nodes = list(graph.node)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = node.attribute[0].t
        self.producer = {name: node for node in self.nodes for name in node.output}

    def is_dequantized(self, name: str) -> bool:
        """Whether a tensor comes from a DequantizeLinear, through at most a change of shape."""
        node = self.producer.get(name)
        while node is not None and node.op_type in ("Transpose", "Reshape", "Flatten"):
            node = self.producer.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"

    def grid_fault(self, node: onnx.NodeProto) -> str | None:
        """What is wrong with the grid of a QuantizeLinear or DequantizeLinear."""
        quantizes = node.op_type == "QuantizeLinear"
        source, scale, zero = [*node.input, ""][:3]
        typed_by = zero or ("" if quantizes else source)
        if scale not in self.constants or (zero and zero not in self.constants):
            return "computed scales"
        if typed_by and typed_by not in self.constants:
            return None  # codes from a QuantizeLinear, which is judged itself
        kind = self.constants[typed_by].data_type if typed_by else TensorProto.UINT8  # ONNX's default
        if kind != TensorProto.INT8:
            return f"{TensorProto.DataType.Name(kind).lower()} codes"
        if zero and numpy_helper.to_array(self.constants[zero]).any():
            return "zero-points"
        is_weight = source in self.constants
        if quantizes and not is_weight and numpy_helper.to_array(self.constants[scale]).size > 1:
            return "per-channel activations"
        return None


def tensorrt_form(path: Path) -> str:
    """``yes``, or ``no`` and the first thing in the graph that TensorRT would refuse or misread.

    The form: int8 codes with zero-point 0 throughout, one scale per activation tensor, both inputs
    of every convolution and matrix product quantized, and biases in float.
    """
    graph = Graph(path)
    for node in graph.nodes:
        if node.op_type.startswith("QLinear") or node.op_type.endswith("Integer"):
            return f"no: {node.op_type} operators"
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            fault = graph.grid_fault(node)
            if fault:
                return f"no: {fault}"
    kernels = [node for node in graph.nodes if node.op_type in ("Conv", "Gemm", "MatMul")]
    bare = sum(not all(map(graph.is_dequantized, node.input[:2])) for node in kernels)
    if bare or not kernels:
        return f"no: {bare} of {len(kernels)} layers are not INT8"
    if any(graph.is_dequantized(name) for node in kernels for name in node.input[2:]):
        return "no: quantized biases"
    return "yes"


def rtx_builds(path: Path) -> str:
    """``yes``, or why TensorRT for RTX does not build the graph."""
    try:
        engines.backend("tensorrt-rtx").build(path, path.with_suffix(".rtx"), OPTIONS)
    except MobileOneQError as error:
        return f"no: {' '.join(str(error).replace(str(path), path.name).split())[:200]}"
    return "yes"


Parts = list[tuple[np.ndarray, np.ndarray]]


class Benchmark:
    """The network, its images and the common scorer, with their files in ``folder``."""

    def __init__(self, args: argparse.Namespace, folder: Path, draw: int | None = None) -> None:
        self.args, self.folder, self.graph = args, folder, folder / "fp32.onnx"
        fused = fuse_branches(load_model(args.weights, "s0")[0])
        fused.save(self.graph.with_suffix(".safetensors"))
        export_onnx(fused, self.graph)
        calibration: Iterable[tuple[np.ndarray, np.ndarray]]
        if draw is None:
            calibration = Batches.choose(ImageFolder(args.data), args.images, args.seed)
            self.evaluation = Batches.choose(ImageFolder(args.eval_data))
        else:
            calibration, self.evaluation = self.drawn(draw)
        np.save(folder / "images.npy", np.concatenate([pixels for pixels, _ in calibration]))
        self.fp32, self.labels = self.logits(self.graph)

    def drawn(self, draw: int) -> tuple[Parts, Parts]:
        """Images for calibration and for evaluation, drawn from the pool of both folders."""
        from cross_validation import (
            split,
        )  # the script beside this one, found where this one runs as a script

        folders = (self.args.data, self.args.eval_data)
        parts = [part for folder in folders for part in Batches.choose(ImageFolder(folder))]
        x, y = (np.concatenate(values) for values in zip(*parts))
        chosen, held = split(len(x), self.args.images, draw)
        return [(x[chosen], y[chosen])], [
            (x[held[k : k + 25]], y[held[k : k + 25]]) for k in range(0, len(held), 25)
        ]

    def logits(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        backend, path_of_engine = engines.backend("onnxruntime"), path.with_suffix(".engine.onnx")
        backend.build(path, path_of_engine, BuildOptions(threads=self.args.threads))
        with backend.load(path_of_engine, threads=self.args.threads) as engine:
            batches = [(values, labels) for (values,), labels in each_batch([engine], self.evaluation)]
        values, labels = zip(*batches)
        return np.concatenate(values), np.concatenate(labels)

    def run(self, tool: str, setting: str) -> tuple[Path, Spent]:
        """Run one tool: (quantized graph, what it took)."""
        python, output = environment(tool, self.args.cache), self.folder / f"{tool}-{setting}.onnx"
        paths = [SCRIPTS / f"{tool}_peer.py", setting, self.graph, self.folder / "images.npy", output]
        command = [str(python), *map(str, paths)]
        printed = execute(command, variables(tool in IMPORT_OURS, self.args.threads), TIMEOUT_S)
        if not output.is_file():
            raise PeerError("it wrote no graph")
        return output, Spent(**json.loads(printed.splitlines()[-1]))

    def row(self, tool: str, setting: str) -> Row:
        try:
            path, spent = self.run(tool, setting)
            figures = self.figures(self.logits(path)[0])
        except (PeerError, MobileOneQError) as error:
            return Row(label(tool), setting, failure=" ".join(str(error).split()))
        form, builds = tensorrt_form(path), rtx_builds(path)
        return Row(
            label(tool), setting, **figures, seconds=spent.seconds, tensorrt_form=form, rtx_builds=builds
        )

    def figures(self, logits: np.ndarray) -> dict[str, float | None]:
        result = compare(self.fp32, logits, self.labels)
        top1 = result.int8.top1 if result.int8 else None
        return {"top1": top1, "agreement": result.agreement, "kl": result.kl}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("weights", "data", "eval-data"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200, help="calibration images")
    parser.add_argument("--seed", type=int, default=0, help="which of the images")
    parser.add_argument("--threads", type=int, default=1, help="that each tool may use")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "mobileone-q-peers")
    parser.add_argument("--output", type=Path, help="Markdown file to write, and a JSON file beside it")
    parser.add_argument("--only", choices=SETTINGS, nargs="+", default=list(SETTINGS), help="run these tools")
    parser.add_argument("--rounds", type=int, help="only compare times, so often in turns")
    parser.add_argument("--draws", type=int, help="draw so often from the pool of both folders")
    args = parser.parse_args()
    args.cache = args.cache.resolve()
    return args


def in_turns(args: argparse.Namespace) -> None:
    """Print what each tool took, over rounds in which all take their turn, every second time backwards."""
    cases = [(tool, setting) for tool in args.only for setting in SETTINGS[tool]]
    spent: dict[tuple[str, str], list[Spent]] = {case: [] for case in cases}
    with TemporaryDirectory() as folder:
        benchmark = Benchmark(args, Path(folder))
        for round_ in range(args.rounds):
            for case in cases[:: -1 if round_ % 2 else 1]:
                spent[case].append(benchmark.run(*case)[1])
                print(f"round {round_}: {case}: {spent[case][-1]}", file=sys.stderr, flush=True)
    print(line(list(ROUNDS_HEADER)), line(["---"] * len(ROUNDS_HEADER)), sep="\n")
    for (tool, setting), rows in spent.items():
        cells = [label(tool), setting]
        for name in ("seconds", "cpu_seconds"):
            values = [getattr(each, name) for each in rows]
            first = [getattr(each, name) for each in spent[cases[0]]]
            ratio = statistics.median(a / b for a, b in zip(values, first))
            cells += [
                f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})",
                f"{ratio:.2f}",
            ]
        print(line(cells))


def over_draws(args: argparse.Namespace) -> None:
    """Print each tool's mean over draws from the pool, and write each draw's rows to ``--output``."""
    rows: dict[tuple[str, str], list[Row]] = {}
    for draw in range(args.draws):
        with TemporaryDirectory() as folder:
            benchmark = Benchmark(args, Path(folder), draw)
            for tool in args.only:
                for setting in SETTINGS[tool]:
                    row = benchmark.row(tool, setting)
                    rows.setdefault((tool, setting), []).append(row)
                    print(f"draw {draw}: {row.markdown()}", file=sys.stderr, flush=True)
    lines = [line(list(DRAWN_HEADER)), line(["---"] * len(DRAWN_HEADER))]
    for each in rows.values():
        failed = [row.failure for row in each if row.failure]
        cells = [f"failed: {failed[0]}", NONE, NONE] if failed else drawn_cells(each)
        lines.append(line([each[0].tool, each[0].setting, *cells]))
    print(*lines, sep="\n")
    if args.output:
        write_text(args.output, "\n".join(lines) + "\n")
        write_json(
            args.output.with_suffix(".json"), [[asdict(row) for row in each] for each in rows.values()]
        )


def drawn_cells(rows: list[Row]) -> list[str]:
    """The figures of one tool over draws."""
    kl, same, seconds = (
        [getattr(row, name) or 0.0 for row in rows] for name in ("kl", "agreement", "seconds")
    )
    return [
        f"{statistics.mean(kl):.4f} ({min(kl):.4f} to {max(kl):.4f})",
        f"{statistics.mean(same):.2%} ({min(same):.2%} to {max(same):.2%})",
        f"{statistics.mean(seconds):.1f}",
    ]


def main() -> None:
    args = arguments()
    if args.rounds:
        in_turns(args)
        return
    if args.draws:
        over_draws(args)
        return
    lines, rows = [line(list(HEADER)), line(["---"] * len(HEADER))], []

    def add(row: Row) -> None:
        rows.append(row)
        lines.append(row.markdown())
        print(lines[-1], flush=True)

    with TemporaryDirectory() as folder:
        benchmark = Benchmark(args, Path(folder))
        print(*lines, sep="\n")
        add(Row("none", "FP32", **benchmark.figures(benchmark.fp32)))
        for tool in args.only:
            for setting in SETTINGS[tool]:
                add(benchmark.row(tool, setting))
    if args.output:
        backend = engines.backend("onnxruntime")
        facts = {
            "device": backend.device(),
            "scorer": backend.runtime(),
            "threads": args.threads,
            "seed": args.seed,
            "images": {"calibration": args.images, "evaluation": len(benchmark.labels)},
        }
        write_text(args.output, "\n".join(lines) + "\n")
        write_json(args.output.with_suffix(".json"), {**facts, "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
