"""Accuracy of one engine on labelled images, as `evaluate` prints it."""

from __future__ import annotations

from pathlib import Path

from mobileone_q.engines import Engine
from mobileone_q.errors import OptionError
from mobileone_q.evaluation.metrics import MeasuredScore
from mobileone_q.evaluation.streaming import ScoreSum, each_batch
from mobileone_q.progress import progress_if
from mobileone_q.runs.engines.engine_inputs import for_normalized
from mobileone_q.runs.engines.loading import load_engine_file, ready_engine
from mobileone_q.runs.inputs import comparison_inputs
from mobileone_q.runs.measuring.measure import accuracy_note, refuse_without_classes
from mobileone_q.runs.measuring.settings import EvaluateOptions
from mobileone_q.runs.storage.folder import RunFolder, find_run


def evaluate_engine(path: Path | None, options: EvaluateOptions, *, progress: bool = False) -> MeasuredScore:
    """Measure one engine, as `evaluate` asks for.

    ``path`` is an engine file in a run's folder ``engines``, or a run, of which ``options`` choose the
    engine, by default INT8 and ONNX Runtime. An ONNX Runtime engine that is not there yet is built.

    Raises:
        OptionError: a precision or backend beside an engine file, which has its own.
        EngineError: the engine is missing or stale, cannot run here, or takes camera frames, or its network
            has no classes.
        RunError: there is no such run, or its graph has changed.
        DataError: the inputs do not fit the run, or have labels beyond its classes.
    """
    if path is not None and path.is_file():
        if options.precision or options.backend:
            raise OptionError(f"{path} is an engine already; leave out --precision and --backend")
        run, engine = load_engine_file(path, options.threads)
    else:
        run = find_run(path)
        precision, backend = options.precision or "int8", options.backend or "onnxruntime"
        engine = ready_engine(run, precision, backend, options.threads)
    with engine:
        return _evaluate(run, engine, options.data, options.images, progress)


def _evaluate(
    run: RunFolder, engine: Engine, data: Path | None, count: int | None, progress: bool
) -> MeasuredScore:
    manifest, arch = run.read_manifest(), run.load_fused().arch
    refuse_without_classes(arch)
    inputs, total = comparison_inputs(run, arch, data, count), ScoreSum()
    with progress_if(progress, "evaluating", len(inputs)) as advance:
        taker = for_normalized(engine, engine.info.input, manifest.preprocessing)
        for (logits,), labels in each_batch([taker], inputs, advance):
            total.add(logits, labels)
    info = engine.info
    is_int8 = info.precision == "int8"
    return MeasuredScore(
        **vars(total.result()),
        engine=f"{run.path.name}, {info.precision} {info.backend}",
        runtime=info.runtime,
        source=inputs.source.name,
        skipped=len(inputs.skipped),
        note=accuracy_note(manifest.target, info.backend, info.runtime) if is_int8 else None,
    )
