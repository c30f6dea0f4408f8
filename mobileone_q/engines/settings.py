"""How an engine is built: one frozen dataclass whose fields are the home of every default.

The command line reads the defaults from here, so nothing heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass

from mobileone_q.names import FloatPrecision, Precision


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine.

    Attributes:
        precision: what the engine computes in.
        float_precision: what an INT8 engine computes in where it has no integers.
        batch: (smallest, typical, largest) number of images that the engine takes at once.
        threads: CPU threads (ONNX Runtime).
        compute_capabilities: GPU generations, such as 86, that TensorRT for RTX builds for; empty
            for the GPU of this machine.
        workspace_mb: limit of the builder's scratch memory on the device, in MiB (TensorRT).
        optimization_level: TensorRT's, from 0 (fast build) to 5 (fast engine); None for its default.
        timing_cache: whether kernel timings are kept and reused between builds (TensorRT).
        version_compatible: whether the engine must also run on later versions of TensorRT.
        hardware_compatible: whether it must also run on other GPUs, from Ampere on.
        dla_core: the DLA core that takes every layer it can, the GPU taking the rest; None for the
            GPU alone.
        calibration_cache: path of the cache with the scales of a graph that has no Q/DQ (DLA).
    """

    precision: Precision = "int8"
    float_precision: FloatPrecision = "fp32"
    batch: tuple[int, int, int] = (1, 1, 8)
    threads: int = 1
    compute_capabilities: tuple[int, ...] = ()
    workspace_mb: int = 1024
    optimization_level: int | None = None
    timing_cache: bool = True
    version_compatible: bool = False
    hardware_compatible: bool = False
    dla_core: int | None = None
    calibration_cache: str | None = None

    @property
    def float_kernels(self) -> Precision:
        """What is computed in wherever the engine has no integers."""
        return self.float_precision if self.precision == "int8" else self.precision
