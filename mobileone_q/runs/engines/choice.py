"""Which backend ``auto`` stands for where engines are to be built: the fastest for the graph, here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from mobileone_q import engines
from mobileone_q.engines import Backend, BuildOptions, Engine
from mobileone_q.errors import EngineError
from mobileone_q.evaluation.clocks import CLOCKS, clock_for
from mobileone_q.evaluation.latency import time_interleaved
from mobileone_q.files import scratch_folder
from mobileone_q.names import CPU_BACKENDS, BackendChoice, BackendName, Precision, pairing
from mobileone_q.progress import Advance, progress_if
from mobileone_q.runs.engines.engine_inputs import random_input
from mobileone_q.runs.engines.graphs import build_options, graph_for, input_form
from mobileone_q.runs.storage.folder import RunFolder

ROUNDS = 50  # of interleaved runs; the medians of two engines then stand apart by what is theirs


@dataclass(frozen=True)
class Choice:
    """A backend, and what the choice rests on: each backend's median latency, in milliseconds."""

    backend: Backend
    median_ms: Mapping[BackendName, float] = field(default_factory=dict)

    def describe(self) -> str:
        """One line for a user; empty where nothing had to be measured."""
        if not self.median_ms:
            return ""
        own, others = self.backend.name, sorted(self.median_ms.keys() - {self.backend.name})
        compared = "".join(f"; {name} takes {self.median_ms[name]:.2f} ms" for name in others)
        return f"backend         {own}, {self.median_ms[own]:.2f} ms{compared}"


def choose_backend(
    run: RunFolder,
    asked: BackendChoice,
    precisions: Sequence[Precision],
    options: BuildOptions,
    *,
    keep_float: Collection[str] = (),
    progress: bool = False,
) -> Choice:
    """The backend to build a run's engines with.

    ``auto`` is TensorRT where it and a GPU are. Else it is the CPU backend that runs the graph fastest
    here. Where several are installed, each builds the graph, and their runs are timed in turns: the INT8
    graph, or that of the last of ``precisions``. A backend that refuses the graph is left out.

    Raises:
        RunError: the graph, or the weights that it is made from, have changed.
        ExportError: the network cannot take its input as the options ask.
    """
    if asked != "auto":
        return Choice(engines.backend(asked))
    best = engines.best_backend()
    precision: Precision = "int8" if "int8" in precisions else precisions[-1]
    names = _usable(run, precision) if best in CPU_BACKENDS and options.dla_core is None else []
    if len(names) < 2:
        return Choice(engines.backend(names[0] if names else best))

    def build(backend: Backend) -> Engine:
        graph = graph_for(run, precision, backend, options, keep_float)
        path = folder / f"{backend.name}{backend.suffix}"
        backend.build(graph, path, build_options(run, precision, options))
        return backend.load(path, graph, options.threads)

    words = f"comparing {' and '.join(names)}"
    with scratch_folder() as folder, progress_if(progress, words, ROUNDS) as advance:
        medians = _medians(run, names, build, options, advance)
    fastest = min(medians, key=lambda name: medians[name], default=best)
    return Choice(engines.backend(fastest), medians)


def _usable(run: RunFolder, precision: Precision) -> list[BackendName]:
    """The CPU backends that are installed and may run the run's graph."""
    target = run.read_manifest().target
    allowed = [name for name in CPU_BACKENDS if precision != "int8" or not pairing(target, name).is_refused]
    return [name for name in allowed if engines.backend(name).is_installed()]


def _medians(
    run: RunFolder, names: Sequence[BackendName], build: Callable[[Backend], Engine], options: BuildOptions,
    advance: Advance,
) -> dict[BackendName, float]:  # fmt: skip
    """Milliseconds of each backend that takes the graph, from interleaved runs on random input."""
    x = random_input(input_form(run, options), run.load_fused().arch, options.batch[1])
    with ExitStack() as stack:
        built: dict[BackendName, Engine] = {}
        for name in names:
            try:
                built[name] = stack.enter_context(build(engines.backend(name)))
            except EngineError:
                continue
        actions = [partial(engine.run, x) for engine in built.values()]
        timings = time_interleaved(actions, ROUNDS, advance, CLOCKS[clock_for(options.threads)])
        return {name: timing.median_ms for name, timing in zip(built, timings)}
