"""Reads the JSON of TensorRT's engine inspector: what each layer is, and the types of its tensors.

Sources of the two schemas: NVIDIA's TensorRT documentation, "Engine Inspector", and "Migrating
IEngineInspector Usage from TensorRT 10.x to 11.x" (11.3.0). Up to version 10 ``Bindings`` is a list of
tensor names, and a tensor's ``Format/Datatype`` holds both in words, such as ``Row major Int8 format``.
In version 11 ``Bindings`` became ``I/O Tensors``, a list of objects, and the words were split into
``Format`` and ``DataType``. Engines that NVIDIA and others published are the records that the reading
is tested on (``tests/engines/test_inspection.py``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mobileone_q.errors import EngineError

ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
# Kernels that multiply: LayerType or ParameterType of a convolution, or of a matrix product.
MULTIPLIES = re.compile(r"conv|gemm|correlation|matrixmultiply|fullyconnected", re.I)
# TensorRT marks what belongs to a later optimization profile so. From 10 on the inspector lists layers once
# (Polygraphy of TensorRT 11.1, backend/trt/util.py); should it list them again, they are left out here.
OTHER_PROFILE = re.compile(r" \[profile [1-9]\d*\]$")
NO_KERNEL = "NoOp"  # another view of the same memory, which costs nothing
TYPE_KEYS = ("DataType", "Datatype", "Format/Datatype", "Format/DataType", "Format")
# TensorRT's words for a type, and the name that reports use.
TYPE_NAMES = {
    "int8": "INT8", "fp16": "FP16", "half": "FP16", "fp32": "FP32", "float": "FP32", "bf16": "BF16",
    "bfloat16": "BF16", "fp8": "FP8", "int4": "INT4", "int32": "INT32", "int64": "INT64", "uint8": "UINT8",
    "bool": "BOOL",
}  # fmt: skip
TYPE_WORD = re.compile(rf"\b({'|'.join(TYPE_NAMES)})\b", re.I)


@dataclass(frozen=True)
class LayerTypes:
    """What an engine's layer is, and the types of its tensors.

    Attributes:
        kind: TensorRT's ``LayerType``, such as ``CaskConvolution``.
        inputs: a type per input, the data first, such as ``INT8``; None where the words name none.
        outputs: a type per output.
        multiplies: whether it is a convolution or a matrix product.
        groups: the convolution's groups; 1 where nothing is said.
    """

    kind: str = ""
    inputs: tuple[str | None, ...] = ()
    outputs: tuple[str | None, ...] = ()
    multiplies: bool = False
    groups: int = 1

    @property
    def runs_kernel(self) -> bool:
        """Whether anything is computed or moved."""
        return self.kind != NO_KERNEL

    @property
    def is_int8_convolution(self) -> bool:
        """Whether it multiplies INT8 values, whatever type its output has."""
        return self.multiplies and self.inputs[:1] == ("INT8",)


@dataclass(frozen=True)
class Inspection:
    """What an engine inspector says.

    Attributes:
        tensors: names of the engine's inputs and outputs.
        origins: by layer name, a text in which names of the ONNX graph may stand.
        reformats: names of the layers that only change a layout or a type.
        types: what each layer is, by layer name.
    """

    tensors: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    reformats: frozenset[str] = frozenset()
    types: Mapping[str, LayerTypes] = field(default_factory=dict)


def read_inspection(inspected: Any) -> Inspection:
    """Read inspector JSON of either schema.

    Layers are objects; in an engine that was built without details they are names, which say
    nothing about where a layer comes from.

    Raises:
        EngineError: the JSON follows neither schema.
    """
    if not isinstance(inspected, dict) or not isinstance(inspected.get("Layers"), list):
        raise EngineError("not the JSON of TensorRT's engine inspector: it has no list `Layers`")
    if "I/O Tensors" in inspected:
        tensors = tuple(str(tensor["Name"]) for tensor in inspected["I/O Tensors"])
    else:
        tensors = tuple(str(name) for name in inspected.get("Bindings", ()))
    origins, reformats, types = {}, set(), {}
    for layer in inspected["Layers"]:
        if not isinstance(layer, dict):
            continue
        name = layer["Name"]
        if OTHER_PROFILE.search(name):
            continue
        traces = ONNX_LAYER.findall(layer.get("Metadata", ""))
        origins[name] = " + ".join(traces or [tensor["Name"] for tensor in layer.get("Outputs", ())])
        types[name] = _types(layer)
        if layer.get("LayerType") == "Reformat":
            reformats.add(name)
    return Inspection(tensors, origins, frozenset(reformats), types)


def type_name(tensor: Mapping[str, Any]) -> str | None:
    """The type of an inspected tensor, such as ``INT8``; None where nothing names one."""
    words = next((tensor[key] for key in TYPE_KEYS if key in tensor), "")
    found = TYPE_WORD.search(str(words))
    return TYPE_NAMES[found[1].lower()] if found else None


def _types(layer: Mapping[str, Any]) -> LayerTypes:
    kind = str(layer.get("LayerType", ""))
    parameters = (layer.get("ParameterType", ""), layer.get("ConvParameterType", ""))
    groups = layer.get("Groups", layer.get("ConvGroups", 1))
    return LayerTypes(
        kind=kind,
        inputs=tuple(map(type_name, layer.get("Inputs", ()))),
        outputs=tuple(map(type_name, layer.get("Outputs", ()))),
        multiplies=any(MULTIPLIES.search(str(text)) for text in (kind, *parameters)),
        groups=groups if isinstance(groups, int) else 1,
    )
