"""Which graph of a run an engine is built from, and what it is loaded against."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mobileone_q.engines import BuildOptions, Engine, EngineInfo, backend
from mobileone_q.errors import EngineError
from mobileone_q.export.graph import export_onnx
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.runs.folder import Run


def write_graph(run: Run, precision: str, remainder: str, factory: type[Engine]) -> Path:
    """The graph for a precision, written first where it is not among those that calibrate makes.

    Where the graph's own types decide (TensorRT 10 and later), FP16 and an FP16 remainder need
    graphs of their own; before, flags of the builder ask for them.
    """
    name = graph_name(run, precision, remainder, factory)
    path = run.onnx(name)
    if name in ("fp32", "int8"):
        return path
    model = FusedModel.load(run.fused) if precision == "fp16" else QuantizedModel.load(run.quantized)
    preprocessing = run.read_manifest().preprocessing
    metadata = preprocessing.to_dict() if preprocessing else None
    export_onnx(model, path, dtype="float16", preprocessing=metadata)
    return path


def graph_name(run: Run, precision: str, remainder: str, factory: type[Engine]) -> str:
    """``fp32``, ``fp16``, ``int8`` or ``int8-fp16``."""
    if not factory.is_typed_by_graph():
        return "fp32" if precision == "fp16" else precision
    if precision != "int8" or remainder == "fp32":
        return precision
    # DLA's graph has flags for its types, and ONNX Runtime has no FP16 kernels on a CPU.
    return "int8" if run.read_manifest().target == "dla" or factory.backend == "onnxruntime" else "int8-fp16"


def build_options(run: Run, precision: str, options: BuildOptions) -> BuildOptions:
    """The options for one precision of a run: FP32 never goes to the DLA, which computes in none,
    and a DLA gets one batch size, the typical one.

    Raises:
        EngineError: INT8 and DLA, and a run that was calibrated for another target, or the reverse.
    """
    target = run.read_manifest().target
    if precision == "int8" and options.dla_core is not None and target != "dla":
        raise EngineError(f"{run.path} is for target {target}, not DLA; calibrate it with --target dla")
    if precision == "int8" and options.dla_core is None and target == "dla":
        raise EngineError(f"{run.path} is for DLA; pass --dla 0, or calibrate it with --target tensorrt")
    dla_core = None if precision == "fp32" else options.dla_core
    calibration = str(run.calibration) if precision == "int8" and dla_core is not None else None
    # What a DLA cannot do in INT8 it does in FP16.
    remainder = "fp16" if calibration else options.remainder
    batch = options.batch if dla_core is None else (options.batch[1],) * 3  # DLA has no ranges
    return replace(
        options,
        precision=precision,
        remainder=remainder,
        batch=batch,
        dla_core=dla_core,
        calibration=calibration,
    )


def load_engine(run: Run, precision: str, backend_name: str, threads: int = 1) -> Engine:
    """A run's built engine, checked against the graph it says it was built from.

    Raises:
        EngineError: missing or stale, or of another version, device or graph.
    """
    factory = backend(backend_name)
    path = run.engine(precision, backend_name, factory.suffix)
    info = EngineInfo.load(path)
    return factory.load(path, run.path / (info.onnx or f"{precision}.onnx"), threads)
