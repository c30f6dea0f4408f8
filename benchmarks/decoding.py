"""Images a second of one engine alone, and of the same engine fed from image files.

    python benchmarks/decoding.py RUN --data images/

Prints the Markdown table of docs/results.md. The engine is that of ONNX Runtime on one thread; RUN's graphs
are built for it. Images are decoded and resized in turn with the engine, by threads ahead of it (as
`evaluate` does), and by processes ahead of it. A process hands over uint8 pixels, which is the least that
it can; the time that processes take to start is not counted. The ways take turns, --rounds times, and the
median is printed. Give a folder with a few hundred images; none is read twice in a round.

With --command there is another table, of the whole of `evaluate` in a process of its own. Its start is taken
out: the command runs on --few images and on --images, and what the latter took more is shared out among them.
Processor time is that of all threads, so that decoding counts in full, which by the clock happens beside the
engine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from mobileone_q import engines
from mobileone_q.data import batches as batches_module
from mobileone_q.data.batches import Batches
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.data.sources import ImageFolder
from mobileone_q.engines import Backend, BuildOptions, Engine
from mobileone_q.runs.storage.folder import RunFolder, find_run

_source: ImageFolder | None = None


def _open_source(root: Path, preprocessing: Preprocessing) -> None:
    global _source
    _source = ImageFolder(root, preprocessing)


def _pixels(index: int) -> np.ndarray:
    assert _source is not None
    with _source.open(index) as image:
        return _source.preprocessing.to_pixels(image)


def by_processes(pool: ProcessPoolExecutor, source: ImageFolder, count: int, size: int) -> Iterator:
    """Batches (N, 3, H, W) whose images processes have decoded, in order."""
    waiting, images = [], []
    for index in range(count + size):  # a batch ahead, as threads are
        if index < count:
            waiting.append(pool.submit(_pixels, index))
        if index >= size:
            images.append(source.preprocessing.normalize(waiting.pop(0).result()))
        if len(images) == size:
            yield np.stack(images)
            images = []
    if images:
        yield np.stack(images)


def timed(engine: Engine, batches: Iterator[np.ndarray]) -> float:
    """Seconds to run every batch."""
    started = time.perf_counter()
    for x in batches:
        engine.run(x)
    return time.perf_counter() - started


def command_seconds(run: Path, data: Path, precision: str, images: int) -> np.ndarray:
    """(processor seconds, seconds by the clock) of one `evaluate`, its start included."""
    words = [sys.executable, "-m", "cli", "evaluate", run, "--data", data, "--precision", precision]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*words, "--images", str(images)], check=True, capture_output=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return np.array([used, seconds])


def engine_seconds(engine: Engine, batches: list[np.ndarray]) -> np.ndarray:
    """(processor seconds, seconds by the clock) of an engine alone on batches in memory."""
    before, started = time.process_time(), time.perf_counter()
    for x in batches:
        engine.run(x)
    return np.array([time.process_time() - before, time.perf_counter() - started])


def print_command(options: argparse.Namespace, backend: Backend, run: RunFolder, batches: list) -> None:
    """Print the second table: milliseconds an image of the engine and of the whole command."""
    print("\n| graph | what | processor, ms an image | clock, ms an image |\n|---|---|---|---|")
    few, many = options.few, min(options.images, sum(map(len, batches)))
    for precision in ("fp32", "int8"):
        graph = run.graph(precision)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{precision}{backend.suffix}"
            backend.build(graph, path, BuildOptions(precision))
            command_seconds(options.run, options.data, precision, few)  # builds the run's engine
            alone, whole = [], []
            with backend.load(path, graph, 1) as engine:
                for _ in range(options.rounds):
                    alone.append(engine_seconds(engine, batches) / many)
                    on_few, on_many = (
                        command_seconds(options.run, options.data, precision, n) for n in (few, many)
                    )
                    whole.append((on_many - on_few) / (many - few))
        for name, times in (("engine alone", alone), ("`evaluate`", whole)):
            processor, clock = 1000 * np.median(times, axis=0)
            print(f"| `{precision}.onnx` | {name} | {processor:.1f} | {clock:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--workers", type=int, nargs="+", help="from 2 on", default=[2, 3])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--command", action="store_true", help="print the table of the whole command alone")
    parser.add_argument("--few", type=int, default=20)
    options = parser.parse_args()
    run = find_run(options.run)
    preprocessing = run.read_manifest().preprocessing
    assert preprocessing is not None
    source = ImageFolder(options.data, preprocessing)
    count = min(options.images, len(source))
    in_memory = [x for x, _ in Batches(ImageFolder(options.data, preprocessing), range(count), options.batch)]

    def from_files(threads: int) -> Iterator[np.ndarray]:
        vars(batches_module)["reading_threads"] = lambda: threads
        fresh = ImageFolder(options.data, preprocessing)  # nothing is cached
        return (x for x, _ in Batches(fresh, range(count), options.batch))

    backend = engines.backend("onnxruntime")
    if options.command:
        print_command(options, backend, run, in_memory)
        return
    print(f"{count} images, batches of {options.batch}, median of {options.rounds} rounds\n")
    print("| graph | images from | images/s | of the engine alone |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        pools = {}
        for workers in options.workers:
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(workers, context, _open_source, (options.data, preprocessing))
            list(pool.map(_pixels, range(4 * workers)))
            pools[workers] = pool
        for precision in ("fp32", "int8"):
            path = Path(folder) / f"{precision}{backend.suffix}"
            graph = run.graph(precision)
            backend.build(graph, path, BuildOptions(precision))
            with backend.load(path, graph, 1) as engine:
                ways = {"memory": lambda: iter(in_memory), "files, in turn": lambda: from_files(1)}
                for workers in options.workers:
                    ways[f"files, {workers} threads"] = lambda n=workers: from_files(n)
                    ways[f"files, {workers} processes"] = lambda n=workers: by_processes(
                        pools[n], source, count, options.batch
                    )
                seconds = {name: [] for name in ways}
                for _ in range(options.rounds):
                    for name, make in ways.items():
                        seconds[name].append(timed(engine, make()))
            alone = statistics.median(seconds["memory"])
            for name, each in seconds.items():
                took = statistics.median(each)
                print(
                    f"| `{precision}.onnx` | {name} | {count / took:.1f} | {100 * alone / took:.0f} % |",
                    flush=True,
                )
        for pool in pools.values():
            pool.shutdown()


if __name__ == "__main__":
    main()
