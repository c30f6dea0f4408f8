"""Compares the answers of all engines at hand: their logits on the same images.

These are the float32 model, the simulation of its INT8 form, and each engine of the run that can
be loaded here. An engine that cannot be loaded is listed with the reason.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from mobileone_q import engines
from mobileone_q.data.batches import LabelledBatches
from mobileone_q.engines.metadata import read_input
from mobileone_q.errors import EngineError, MissingDependency
from mobileone_q.evaluation.comparison import TorchModel
from mobileone_q.evaluation.exact import ExactEvaluator
from mobileone_q.evaluation.metrics import Parity, Runnable
from mobileone_q.evaluation.streaming import ParitySum, each_batch
from mobileone_q.names import BACKENDS, CPU_BACKENDS, FLOAT_PRECISIONS, PRECISIONS, FloatPrecision
from mobileone_q.progress import Advance, progress_if, silent
from mobileone_q.runs.engines.engine_inputs import for_normalized
from mobileone_q.runs.engines.loading import load_engine
from mobileone_q.runs.inputs import comparison_inputs
from mobileone_q.runs.measuring.measure import refuse_without_classes
from mobileone_q.runs.measuring.settings import COMPARED_IMAGES, EvaluateOptions
from mobileone_q.runs.storage.folder import RunFolder
from mobileone_q.runs.storage.integrity import PLAIN_GRAPH

SIMULATION, PLAIN_SIMULATION = "int8 simulation", "int8 plain simulation"


def engines_at_hand(
    run: RunFolder, threads: int, stack: ExitStack
) -> tuple[dict[str, Runnable], dict[str, str]]:
    """(runnables by name, reasons by name of the engines that are built and cannot run here).

    ``stack`` closes the engines.
    """
    usable: dict[str, Runnable] = {
        "fp32 torch": TorchModel(run.load_fused()),
        SIMULATION: TorchModel(run.load_quantized()),
    }
    unusable = {}
    manifest = run.read_manifest()
    is_dla = manifest.target == "dla"
    for name in BACKENDS:
        for precision in PRECISIONS:
            path = run.engine(precision, name, engines.backend(name).suffix)
            if not path.is_file():
                continue
            label = f"{precision} {name}"
            if is_dla and name in CPU_BACKENDS and precision == "int8":
                unusable[label] = "its graph has no grids: for DLA they are in the calibration cache"
                continue
            try:
                engine = stack.enter_context(load_engine(run, precision, name, threads))
                usable[label] = for_normalized(engine, engine.info.input, manifest.preprocessing)
            except (EngineError, MissingDependency) as error:
                unusable[label] = str(error)
    return usable, unusable


def exact_evaluators(run: RunFolder) -> dict[str, Runnable]:
    """The INT8 graph in exact integers, with FP32 and with FP16 between; of a run that has two graphs, both.

    The second graph comes with its own simulation.

    Raises:
        EngineError: the graph is not for target tensorrt.
        RunError: a graph or the weights have changed.
    """
    manifest = run.read_manifest()

    def computed(graph: Path, precision: FloatPrecision) -> Runnable:
        return for_normalized(ExactEvaluator(graph, precision), read_input(graph), manifest.preprocessing)

    graph = run.graph("int8")
    usable: dict[str, Runnable] = {f"int8 exact {each}": computed(graph, each) for each in FLOAT_PRECISIONS}
    if run.has_plain_grids():
        plain = run.verified(PLAIN_GRAPH)
        usable[PLAIN_SIMULATION] = TorchModel(run.load_plain())
        usable |= {f"int8 plain exact {each}": computed(plain, each) for each in FLOAT_PRECISIONS}
    return usable


def reference_of(name: str) -> str:
    """What an engine is compared with: the simulation of its own grids, or the float32 model."""
    if name.startswith("int8 plain"):
        return PLAIN_SIMULATION
    return SIMULATION if name.startswith("int8") else "fp32 torch"


def measure_parity(
    run: RunFolder,
    images: LabelledBatches,
    threads: int = 1,
    advance: Advance = silent,
    exact: bool = False,
) -> Parity:
    """Every engine at hand beside the reference of its precision, on the same images.

    ``exact`` also runs each INT8 graph in integers (:func:`exact_evaluators`).

    Raises:
        EngineError: ``exact``, and the INT8 graph is not for target tensorrt.
        DataError: there are no images, or a label is beyond the network's classes.
        RunError: the weights or a graph have changed.
    """
    with ExitStack() as stack:
        usable, unusable = engines_at_hand(run, threads, stack)
        if exact:
            usable |= exact_evaluators(run)
        references = {name: reference_of(name) for name in usable}
        sums, count = {name: ParitySum() for name in usable}, 0
        for outputs, labels in each_batch(usable.values(), images, advance):
            logits = dict(zip(usable, outputs))
            for name, total in sums.items():
                total.add(logits[name], logits[references[name]], logits["fp32 torch"], labels)
            count += len(labels)
    rows = tuple(total.result(name, references[name]) for name, total in sums.items())
    return Parity(count, rows, unusable)


def compare_engines(run: RunFolder, options: EvaluateOptions, *, progress: bool = False) -> Parity:
    """As :func:`measure_parity`, on the images that `evaluate` asks for; the report gets the comparison.

    Raises:
        EngineError: the network has no classes.
        DataError: there are no images, or they do not fit the run.
        FileError, RunError: the report is damaged or of other graphs.
    """
    run.read_report()  # a damaged one is refused before the work, not after it
    count, arch = options.images or COMPARED_IMAGES, run.load_fused().arch
    refuse_without_classes(arch)
    chosen = comparison_inputs(run, arch, options.data, count)
    with progress_if(progress, "comparing", len(chosen)) as advance:
        parity = measure_parity(run, chosen, options.threads, advance, options.exact)
    run.add_to_report(parity=parity)
    return parity
