"""OpenVINO beside ONNX Runtime on a CPU: accuracy and latency of both forms of the INT8 graph.

    python benchmarks/cpu_runtimes.py runs/s0-tensorrt runs/s0-onnxruntime --eval-data val/ --threads 1 2

For each run, its INT8 graph in both runtimes, and the FP32 graph of the first run. Latency is of one image;
the graphs of one number of threads run in turns, in random order. Prints two Markdown tables: medians in
milliseconds, and accuracy of INT8 against the same runtime's FP32 on the evaluation images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.tuning_study import interleaved
from mobileone_q import engines
from mobileone_q.data.batches import Batches
from mobileone_q.data.sources import ImageFolder
from mobileone_q.engines import BuildOptions, Engine
from mobileone_q.evaluation.streaming import compare, each_batch
from mobileone_q.files import scratch_folder
from mobileone_q.runs.run import open_run

BACKENDS = ("onnxruntime", "openvino")
Key = tuple[str, str]  # (form, backend)


def built(graphs: dict[str, Path], threads: int, folder: Path) -> dict[Key, Engine]:
    """Every graph in every runtime, loaded."""
    loaded = {}
    for form, graph in graphs.items():
        for name in BACKENDS:
            backend, path = engines.backend(name), folder / f"{form}-{name}-{threads}.onnx"
            backend.build(graph, path, BuildOptions(threads=threads))
            loaded[form, name] = backend.load(path, graph)
    return loaded


def print_accuracy(loaded: dict[Key, Engine], images: Batches) -> None:
    """A row for every form and runtime, against FP32 in the same runtime."""
    keys = list(loaded)
    batches = list(each_batch([loaded[key] for key in keys], images))
    labels = np.concatenate([y for _, y in batches])
    logits = {key: np.concatenate([outputs[k] for outputs, _ in batches]) for k, key in enumerate(keys)}
    print(
        "| form | runtime | top-1 | drop, points (95 %) | agreement | KL, nats |\n|---|---|---|---|---|---|"
    )
    for form, backend in keys:
        found = compare(logits["FP32", backend], logits[form, backend], labels)
        low, high = found.drop_ci95_pts or (0.0, 0.0)
        top1 = 100 * found.int8.top1 if found.int8 else float("nan")
        print(
            f"| {form} | {backend} | {top1:.2f} % | {found.drop_pts:+.2f} ({low:+.2f} to {high:+.2f}) "
            f"| {100 * found.agreement:.2f} % | {found.kl:.4f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="calibrated runs of one network")
    parser.add_argument("--eval-data", type=Path, required=True)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=300)
    args = parser.parse_args()
    runs = [open_run(path) for path in args.runs]
    graphs = {"FP32": runs[0].graph("fp32")}
    graphs |= {f"`{run.read_manifest().target}`": run.graph("int8") for run in runs}
    size = runs[0].load_fused().arch.image_size
    x = np.random.default_rng(0).standard_normal((1, 3, *size), np.float32)
    images = Batches.choose(ImageFolder(args.eval_data), None)
    with scratch_folder() as folder:
        for threads in args.threads:
            loaded = built(graphs, threads, folder)
            if threads == args.threads[0]:
                print_accuracy(loaded, images)
                print("\n| threads | form | ONNX Runtime, ms | OpenVINO, ms |\n|---|---|---|---|")
            found = interleaved(loaded, x, args.rounds)
            for form in graphs:
                # A runtime's threads are not all in the processor's time, so the clock is the wall's.
                ms = " | ".join(f"{found[form, backend][1]:.2f}" for backend in BACKENDS)
                print(f"| {threads} | {form} | {ms} |", flush=True)
            for engine in loaded.values():
                engine.close()


if __name__ == "__main__":
    main()
