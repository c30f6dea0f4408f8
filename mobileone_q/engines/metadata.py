"""The target of a graph, from its ONNX metadata, and whether a backend may have it.

Export writes two keys into every graph: ``target`` (whose integer grids it is written for) and
``precision``. :func:`mobileone_q.names.pairing` decides what goes with what.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mobileone_q.errors import EngineError
from mobileone_q.input_form import FLOAT_INPUT, InputForm
from mobileone_q.names import FLOAT_PRECISIONS, TARGETS, BackendName, Target, pairing

PRODUCER = "mobileone-q"  # what export writes as a graph's producer_name


def read_target(onnx_path: Path) -> Target | None:
    """The target of an INT8 graph.

    None for a graph in floating point, for one of another tool, and for one that was written
    before the target stood in the metadata. None also for a file that is not ONNX: the backend
    says what is wrong with it.

    Raises:
        EngineError: a target that this version does not know.
    """
    proto = _read(onnx_path)
    if proto is None:
        return None
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    written = metadata.get("target")
    if proto.producer_name != PRODUCER or not written or metadata.get("precision") in FLOAT_PRECISIONS:
        return None
    for target in TARGETS:
        if target == written:
            return target
    raise EngineError(
        f"{onnx_path} is written for target {written}, which this version does not know; "
        "install the mobileone-q that wrote it, or calibrate again"
    )


def read_input(onnx_path: Path) -> InputForm:
    """What the graph's input takes; normalized floats where the metadata does not say.

    Raises:
        EngineError: a form that this version does not know.
    """
    proto = _read(onnx_path)
    written = next((each.value for each in proto.metadata_props if each.key == "input"), "") if proto else ""
    if not written or proto.producer_name != PRODUCER:
        return FLOAT_INPUT
    try:
        return InputForm.from_dict(json.loads(written))
    except (ValueError, AttributeError, RecursionError):
        raise EngineError(
            f"{onnx_path} takes an input that this version does not know; install the mobileone-q that wrote "
            "it, or calibrate again"
        ) from None


def check_pairing(path: Path, target: Target | None, backend: BackendName, dla_core: int | None) -> None:
    """Check that ``backend`` may have a graph of that target; ``path`` is the file to name.

    Raises:
        EngineError: it may not; the message gives the remedy.
    """
    if target is not None:
        pair = pairing(target, backend, dla_core)
        if pair.is_refused:
            raise EngineError(f"{path}: {pair.refusal}")


def has_only_int8_grids(onnx_path: Path) -> bool:
    """Whether a graph quantizes, and always to int8, as TensorRT wants it.

    Graphs for ONNX Runtime have uint8 codes too. This is for graphs that do not name their target.
    """
    import onnx

    proto = _read(onnx_path)
    if proto is None:
        return False
    types = {constant.name: constant.data_type for constant in proto.graph.initializer}
    quantizers = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    return bool(quantizers) and all(
        len(node.input) == 3 and types.get(node.input[2]) == onnx.TensorProto.INT8 for node in quantizers
    )


def _read(onnx_path: Path) -> Any:
    """The graph without external data; None where the file is not ONNX."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(onnx_path, load_external_data=False)
    except (OSError, DecodeError):
        return None
