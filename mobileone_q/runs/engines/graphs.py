"""Which graph of a run an engine is built from, and with which options."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from mobileone_q.engines import Backend, BuildOptions
from mobileone_q.errors import EngineError
from mobileone_q.export.dla_plan import DlaPlan, dla_plan
from mobileone_q.export.graph import export_onnx
from mobileone_q.input_form import InputForm, settled_form
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.names import (
    CPU_BACKENDS,
    DLA_TARGETS,
    ActivationGrids,
    BackendName,
    FloatPrecision,
    Precision,
    pairing,
)
from mobileone_q.report.schema import Manifest
from mobileone_q.runs.storage.folder import RunFolder
from mobileone_q.runs.storage.integrity import CALIBRATION_CACHE, record_graph

SAMPLE_LICENCE = "Apache-2.0"  # this project trained it: benchmarks/make_sample.py
UNKNOWN_LICENCE = "that of the weights, which is not in their file; ask who published them"


def write_graph(
    run: RunFolder,
    precision: Precision,
    float_precision: FloatPrecision,
    backend_name: BackendName,
    typed: bool,
    activation_grids: ActivationGrids = "saturating",
    keep_float: Collection[str] = (),
    form: InputForm | None = None,
) -> Path:
    """The graph for a precision, written first where it is not among those that calibrate makes.

    ``typed`` says that the graph's own types decide the precision (TensorRT 10 and later): FP16,
    and FP16 where INT8 has no integers, then need graphs of their own. Earlier versions take flags.
    ``activation_grids`` plain asks for the second INT8 graph of a run that has two. ``keep_float`` names
    blocks that the INT8 graph is to have in floating point besides. ``form`` asks for a graph that takes
    another input than the run's own.

    Raises:
        CalibrationError: the network has no such block.
        RunError: the graph, or the weights that it is made from, have changed.
        ExportError: the network cannot take its input in that form.
    """
    name = graph_name(run, precision, float_precision, backend_name, typed)
    manifest = run.read_manifest()
    form = form or manifest.input
    suffix = form.suffix if form != manifest.input else ""
    if precision == "int8" and keep_float:
        own = run.load_quantized()
        mixed = own.mixed(keep_float)
        if mixed.keep_float != own.keep_float:
            half: FloatPrecision = "fp16" if name == "int8-fp16" else "fp32"
            return _written(run, mixed, name.replace("int8", "int8-mixed") + suffix, half, form)
    if activation_grids == "plain":
        name = name.replace("int8", "int8-plain")
    if not suffix and name in ("fp32", "int8", "int8-plain"):
        return run.verified(f"{name}.onnx")
    name += suffix
    load_int8 = run.load_plain if activation_grids == "plain" else run.load_quantized
    model = load_int8() if precision == "int8" else run.load_fused()
    return _written(run, model, name, "fp16" if "fp16" in name else "fp32", form)


def graph_for(
    run: RunFolder,
    precision: Precision,
    backend: Backend,
    options: BuildOptions,
    keep_float: Collection[str] = (),
) -> Path:
    """The graph that a backend builds an engine from, in the form that the options ask for.

    Raises:
        CalibrationError, RunError, ExportError: see :func:`write_graph`.
    """
    return write_graph(
        run,
        precision,
        options.float_precision,
        backend.name,
        backend.is_typed_by_graph(),
        keep_float=keep_float,
        form=input_form(run, options),
    )


def _written(
    run: RunFolder,
    model: FusedModel | QuantizedModel,
    name: str,
    float_precision: FloatPrecision,
    form: InputForm,
) -> Path:
    """A graph that is not among those that calibrate makes, written with its sidecar."""
    manifest, path = run.read_manifest(), run.onnx(name)
    metadata = manifest.preprocessing.to_dict() if manifest.preprocessing else None
    export_onnx(
        model,
        path,
        float_precision=float_precision,
        preprocessing=metadata,
        input_form=form,
        facts=graph_facts(manifest),
    )
    record_graph(run.path, path.name, manifest)
    return path


def graph_facts(manifest: Manifest) -> dict[str, str]:
    """What a run's manifest adds to the metadata of its graphs.

    ``classes`` and ``versions`` are JSON, a list of names and an object. ``license`` is that of the weights;
    for weights of others it says that their file does not state one.
    """
    licence = SAMPLE_LICENCE if manifest.is_sample else UNKNOWN_LICENCE
    facts = {
        "versions": json.dumps(dict(manifest.versions)),
        "weights_sha256": manifest.weights.sha256,
        "license": licence,
    }
    return facts | ({"classes": json.dumps(manifest.classes)} if manifest.classes else {})


def input_form(run: RunFolder, options: BuildOptions) -> InputForm:
    """The form of input that options ask for; by default, that of the run's own graphs.

    Raises:
        ExportError: options that do not go together.
    """
    own = run.read_manifest().input
    order = options.channel_order or (own.channel_order if options.input in (None, own.kind) else None)
    return settled_form(options.input or own.kind, order, options.camera_size)


def graph_name(
    run: RunFolder,
    precision: Precision,
    float_precision: FloatPrecision,
    backend_name: BackendName,
    typed: bool,
) -> str:
    """``fp32``, ``fp16``, ``int8`` or ``int8-fp16``; the arguments are those of :func:`write_graph`."""
    if not typed:
        return "fp32" if precision == "fp16" else precision
    if precision != "int8" or float_precision == "fp32":
        return precision
    # A graph for DLA leaves nothing in floating point, and there are no FP16 kernels on a CPU.
    is_int8 = run.read_manifest().target in DLA_TARGETS or backend_name in CPU_BACKENDS
    return "int8" if is_int8 else "int8-fp16"


def refuse_foreign_target(run: RunFolder, backend_name: BackendName, dla_core: int | None) -> None:
    """Check that a backend may run the run's INT8 graph, before anything is built or written.

    Raises:
        EngineError: it would compute something else; the message says what to do.
    """
    verdict = pairing(run.read_manifest().target, backend_name, dla_core)
    if verdict.is_refused:
        raise EngineError(f"{run.path}: {verdict.refusal}")


def build_options(run: RunFolder, precision: Precision, options: BuildOptions) -> BuildOptions:
    """The options for one precision of a run.

    FP32 never goes to the DLA, which does not compute in it. A DLA takes one batch size: the typical
    one.
    """
    dla_core = None if precision == "fp32" else options.dla_core
    is_int8_on_dla = precision == "int8" and dla_core is not None
    needs_cache = is_int8_on_dla and run.read_manifest().target == "dla"
    cache = str(run.verified(CALIBRATION_CACHE)) if needs_cache else None
    # What a DLA cannot do in INT8 it does in FP16.
    float_precision: FloatPrecision = "fp16" if is_int8_on_dla else options.float_precision
    batch = options.batch if dla_core is None else (options.batch[1],) * 3  # DLA has no ranges
    return replace(
        options,
        precision=precision,
        float_precision=float_precision,
        batch=batch,
        dla_core=dla_core,
        calibration_cache=cache,
    )


def planned_for_dla(run: RunFolder) -> DlaPlan | None:
    """What DLA is expected to run of the run's INT8 graph; None for another target.

    Raises:
        RunError: the graph or its cache has changed.
    """
    target = run.read_manifest().target
    if target not in DLA_TARGETS:
        return None
    cache = run.verified(CALIBRATION_CACHE) if target == "dla" else None
    return dla_plan(run.verified("int8.onnx"), cache)
