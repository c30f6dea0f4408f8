"""How an engine is built: one frozen dataclass whose fields are the home of every default.

The command line makes its options from the fields, so nothing heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass

from mobileone_q.errors import OptionError
from mobileone_q.names import ChannelOrder, FloatPrecision, InputKind, Precision
from mobileone_q.settings import MOST_BATCH, MOST_THREADS, mistakes, setting


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine.

    ``precision`` is what the engine computes in, and ``float_precision`` what an INT8 engine computes
    in where it has no integers. ``batch`` is the (smallest, typical, largest) number of images that
    the engine takes at once. ``calibration_cache`` is the path of the cache with the scales of a graph
    that has no Q/DQ (DLA). The command sets ``precision`` and the cache itself; the others are its options.

    Raises:
        OptionError: values of another type or out of range, all of them listed at once.
    """

    precision: Precision = "int8"
    float_precision: FloatPrecision = setting(
        "fp16", "What an INT8 engine computes in where it has no integers (TensorRT on a GPU)."
    )
    batch: tuple[int, int, int] = setting(
        (1, 1, 8), "Images at once; one number for a fixed batch.", metavar="MIN:OPT:MAX"
    )
    static_profile: bool = setting(
        True, "Beside a range of --batch from 1 on, a profile for exactly one image (TensorRT 10 and later)."
    )
    threads: int = setting(1, "CPU threads (onnxruntime, openvino).", low=1, high=MOST_THREADS)
    compute_capabilities: tuple[int, ...] = setting(
        (),
        "GPU generation to build for with no GPU at hand, such as 86; repeatable (tensorrt-rtx).",
        flag="--compute-capability",
    )
    workspace_mb: int = setting(
        1024, "Limit of the builder's memory on the device, MiB (TensorRT).", flag="--workspace", low=1
    )
    optimization_level: int | None = setting(
        None,
        "0 builds fast, 5 builds fast engines (TensorRT 8.6 and later).",
        flag="--opt-level",
        low=0,
        high=5,
        default_help="TensorRT's own",
    )
    timing_cache: bool = setting(True, "Reuse kernel timings of earlier builds on this device (TensorRT).")
    version_compatible: bool = setting(
        False, "The engine also runs on later versions of TensorRT (8.6 and later)."
    )
    hardware_compatible: bool = setting(
        False, "The engine runs on any desktop GPU from Ampere on; not on Jetson (8.6 and later)."
    )
    dla_core: int | None = setting(
        None,
        "DLA core to build for; what it cannot do runs on the GPU (--target dla).",
        flag="--dla",
        low=0,
        default_help="the GPU alone",
    )
    input: InputKind | None = setting(
        None,
        "What engines take: normalized float32 (N, 3, H, W), or uint8 pixels (N, H, W, 3).",
        default_help="as the run's graphs",
    )
    channel_order: ChannelOrder | None = setting(
        None, "With --input uint8: the order of a pixel's channels.", default_help="as the run's graphs"
    )
    camera_size: tuple[int, int] | None = setting(
        None,
        "With --input uint8: frames of this size, such as 480x640, which the engine scales and crops.",
        metavar="HxW",
        default_help="the network's size",
    )
    direct_input: bool = setting(
        False,
        "The engine takes INT8 in DLA's own layout, so that no kernel on the GPU converts the input "
        "(--bundle, --target dla).",
    )
    calibration_cache: str | None = None

    def __post_init__(self) -> None:
        wrong = mistakes(self)
        if not wrong and not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2] <= MOST_BATCH:
            wrong.append(f"batch {self.batch} (smallest, typical and largest, from 1 to {MOST_BATCH})")
        if wrong:
            raise OptionError(f"build options that cannot be used: {', '.join(wrong)}")

    @property
    def float_kernels(self) -> Precision:
        """What is computed in wherever the engine has no integers."""
        return self.float_precision if self.precision == "int8" else self.precision

    @property
    def profiles(self) -> tuple[tuple[int, int, int], ...]:
        """The (smallest, typical, largest) batch of each optimization profile, that of one image first."""
        if self.static_profile and self.batch[0] == 1 < self.batch[2]:
            return (1, 1, 1), self.batch
        return (self.batch,)
