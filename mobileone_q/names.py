"""Names that users type, each once, and which target goes with which backend.

Three words that are easily confused:

    target    whose integer grids a graph is written for
    backend   a library that runs graphs
    runtime   a backend and its version on a device, such as ``onnxruntime 1.32.0``

Only ``typing`` and ``dataclasses`` are imported here, so that ``--help`` and ``doctor`` answer at
once and without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

ArchitectureName = Literal["s0", "s1", "s2", "s3", "s4"]
FaceForm = Literal["gdc", "conv"]
Target = Literal["tensorrt", "onnxruntime", "dla", "dla-qdq"]
BackendName = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]
BackendChoice = Literal["auto", BackendName]
ActivationGrids = Literal["saturating", "plain"]
Precision = Literal["fp32", "fp16", "int8"]
FloatPrecision = Literal["fp32", "fp16"]
RangeMethod = Literal["minmax", "percentile", "entropy", "mse"]
Rounding = Literal["nearest", "compensated"]
KeyMapName = Literal["apple", "timm", "mmpretrain", "jahongir7174"]
WritableLayout = Literal["own", "apple", "timm", "mmpretrain"]
Task = Literal["classify", "embed", "features"]
InputKind = Literal["float", "uint8"]  # of a graph: normalized values, or pixels
ChannelOrder = Literal["rgb", "bgr"]
Form = Literal["table", "markdown", "csv", "json", "html"]  # of a table of figures

ARCHITECTURES: tuple[ArchitectureName, ...] = get_args(ArchitectureName)
FACE_FORMS: tuple[FaceForm, ...] = get_args(FaceForm)
TARGETS: tuple[Target, ...] = get_args(Target)
DLA_TARGETS: tuple[Target, ...] = ("dla", "dla-qdq")  # scales in a calibration cache; Q/DQ in the graph
ACTIVATION_GRIDS: tuple[ActivationGrids, ...] = get_args(ActivationGrids)
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
FLOAT_PRECISIONS: tuple[FloatPrecision, ...] = get_args(FloatPrecision)
WRITABLE_LAYOUTS: tuple[WritableLayout, ...] = get_args(WritableLayout)
FORMS: tuple[Form, ...] = get_args(Form)

# They compute a float16 graph in float32 (there is no FP16 engine to time), and know no DLA.
CPU_BACKENDS: tuple[BackendName, ...] = ("onnxruntime", "openvino")

OPSET = 17  # of every ONNX file; TensorRT 8.5 and ONNX Runtime 1.12 read it


@dataclass(frozen=True)
class Pairing:
    """Whether an INT8 graph for one target may run in one backend, and what to say about it.

    Attributes:
        refusal: why the graph must not run there, with the remedy; empty where it may.
        label: what stands beside every figure measured there; empty where the backend is the
            target's own.
    """

    refusal: str = ""
    label: str = ""

    @property
    def is_refused(self) -> bool:
        return bool(self.refusal)


def _not_its_target(target: Target, backend: BackendName) -> Pairing:
    return Pairing(
        label=f"not its target: the graph is written for {target}, and its speed in {backend} says "
        "nothing about its speed there"
    )


_UNSIGNED_CODES = (
    "the INT8 graph is for target onnxruntime, and {backend} would read its uint8 codes as int8, "
    "which ruins the network; calibrate again with --target tensorrt"
)
_DLA_GRIDS = (
    "the INT8 graph is for target dla, whose grids stand in a calibration cache that {backend} does "
    "not read; write a bundle for the device with --dla 0 --bundle FOLDER, or calibrate again with "
    "--target {other}"
)
RTX_WARNING = (
    "TensorRT for RTX may run INT8 slower than FP16: it has twice as many layers, since kernels of their own "
    "quantize what each convolution gives, and on compute capability 7.5 it computes in floating point "
    "(benchmarks/rtx_layers.py shows the layers); measure both before you use it"
)
_RTX_HAS_OTHER_KERNELS = Pairing(
    label="a check of form: TensorRT for RTX has other INT8 kernels than TensorRT, and none before Ampere"
)

_PAIRINGS: dict[tuple[Target, BackendName], Pairing] = {
    ("onnxruntime", "onnxruntime"): Pairing(),
    ("onnxruntime", "openvino"): Pairing(),
    ("onnxruntime", "tensorrt"): Pairing(_UNSIGNED_CODES.format(backend="TensorRT")),
    ("onnxruntime", "tensorrt-rtx"): Pairing(_UNSIGNED_CODES.format(backend="TensorRT for RTX")),
    ("tensorrt", "onnxruntime"): _not_its_target("tensorrt", "onnxruntime"),
    ("tensorrt", "openvino"): _not_its_target("tensorrt", "openvino"),
    ("tensorrt", "tensorrt"): Pairing(),
    ("tensorrt", "tensorrt-rtx"): _RTX_HAS_OTHER_KERNELS,
    ("dla", "onnxruntime"): Pairing(_DLA_GRIDS.format(backend="ONNX Runtime", other="onnxruntime")),
    ("dla", "openvino"): Pairing(_DLA_GRIDS.format(backend="OpenVINO", other="onnxruntime")),
    ("dla", "tensorrt"): Pairing(),  # with a DLA core: see pairing()
    ("dla", "tensorrt-rtx"): Pairing(_DLA_GRIDS.format(backend="TensorRT for RTX", other="tensorrt")),
    ("dla-qdq", "onnxruntime"): _not_its_target("dla-qdq", "onnxruntime"),
    ("dla-qdq", "openvino"): _not_its_target("dla-qdq", "openvino"),
    ("dla-qdq", "tensorrt"): Pairing(),  # with a DLA core: see pairing()
    ("dla-qdq", "tensorrt-rtx"): Pairing(
        "the INT8 graph is for target dla-qdq, whose uint8 codes TensorRT for RTX reads as int32; "
        "calibrate again with --target tensorrt"
    ),
}


def pairing(target: Target, backend: BackendName, dla_core: int | None = None) -> Pairing:
    """Whether an INT8 graph for ``target`` may run in ``backend``. No other place decides this.

    ``dla_core`` is the DLA core that an engine is built for; None for the GPU or the CPU. Do not ask
    for graphs in floating point: they run in every backend.
    """
    if target in DLA_TARGETS and backend == "tensorrt" and dla_core is None:
        return Pairing("the INT8 graph is for DLA; pass --dla 0, or calibrate again with --target tensorrt")
    if target not in DLA_TARGETS and dla_core is not None:
        return Pairing(
            f"the INT8 graph is for target {target}, not DLA; calibrate again with --target dla "
            "(TensorRT 8.5 to 10.7) or dla-qdq (11.4.1 and later), or drop --dla"
        )
    return _PAIRINGS[target, backend]
