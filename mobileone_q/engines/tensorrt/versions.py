"""The differences between TensorRT 8.5 to 11 and TensorRT for RTX, in one place.

The package itself is asked what it has: a version is known by the classes, flags and properties
that it lacks, and an option that it lacks is refused in words. The version number decides only what
has no name to ask for, such as the first line of a calibration cache.

| precision     | 8.5, 8.6                  | 10.x                                  | 11, RTX          |
|---------------|---------------------------|---------------------------------------|------------------|
| typing        | weak: builder flags       | STRONGLY_TYPED: the graph's own types | the same, always |
| FP16          | BuilderFlag.FP16          | float16 in the graph                  | the same         |
| INT8          | Q/DQ and BuilderFlag.INT8 | Q/DQ                                  | Q/DQ             |
| INT8 on DLA   | calibration cache         | calibration cache, weakly typed       | gone             |
"""

from __future__ import annotations

from typing import Any

from mobileone_q.engines.settings import BuildOptions
from mobileone_q.errors import EngineError


def is_strongly_typed(trt: Any) -> bool:
    """Whether the graph's own types decide precision (10 and later) or builder flags do (8)."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def is_rtx(trt: Any) -> bool:
    """Whether this is TensorRT for RTX, which has some of TensorRT's names and ignores them."""
    return hasattr(trt, "ComputeCapability")


def network_flags(trt: Any, options: BuildOptions) -> int:
    """Bits for ``create_network``: the network is typed by the graph where this version can.

    A calibration cache (DLA) needs a weakly typed network, which version 10 gives an explicit
    batch without a flag.
    """
    flags = trt.NetworkDefinitionCreationFlag
    if not is_strongly_typed(trt):
        return 1 << int(flags.EXPLICIT_BATCH)
    return 0 if options.calibration_cache else 1 << int(flags.STRONGLY_TYPED)


def precision_flags(trt: Any, options: BuildOptions) -> list[Any]:
    """The builder flags that ask for the precision; none where the graph's types decide it."""
    if is_strongly_typed(trt) and not options.calibration_cache:
        return []
    int8 = [trt.BuilderFlag.INT8] if options.precision == "int8" else []
    return int8 + ([trt.BuilderFlag.FP16] if options.float_kernels == "fp16" else [])


def refuse_unsupported(trt: Any, options: BuildOptions) -> None:
    """Check that this TensorRT version supports the options.

    Raises:
        EngineError: an option is not supported; the message names it, so that it can be dropped.
    """
    title = f"{trt.__name__} {trt.__version__}"
    config, flags = trt.IBuilderConfig, trt.BuilderFlag
    wanting = [
        (options.optimization_level is not None, hasattr(config, "builder_optimization_level"),
         "no optimization levels (8.6 brought them); drop --opt-level"),
        (options.version_compatible, not is_rtx(trt) and hasattr(flags, "VERSION_COMPATIBLE"),
         "no version-compatible engines (8.6 brought them, without TensorRT for RTX); "
         "drop --version-compatible"),
        (options.hardware_compatible, hasattr(trt, "HardwareCompatibilityLevel") and not is_rtx(trt),
         "no hardware-compatible engines (8.6 brought them; TensorRT for RTX takes "
         "--compute-capability); drop --hardware-compatible"),
        (options.dla_core is not None, not is_rtx(trt), "no DLA; drop --dla"),
        (options.calibration_cache is not None, hasattr(trt, "IInt8EntropyCalibrator2"),
         "no calibration cache (TensorRT 11 took it away): INT8 on DLA needs TensorRT 8.5 to 10, "
         "which JetPack 5 and 6 bring; without --dla, calibrate with --target tensorrt"),
    ]  # fmt: skip
    for is_wanted, is_there, reason in wanting:
        if is_wanted and not is_there:
            raise EngineError(f"{title} has {reason}")


def configure(trt: Any, config: Any, options: BuildOptions) -> None:
    """Set up a builder configuration by the options, with the names that this version has."""
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for flag in precision_flags(trt, options):
        config.set_flag(flag)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.dla_core is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla_core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)  # DLA has no matrix product, and other gaps
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, number in enumerate(options.compute_capabilities):
            config.set_compute_capability(compute_capability(trt, number), index)


def compute_capability(trt: Any, number: int) -> Any:
    """The enum value of a compute capability such as 86.

    Raises:
        EngineError: the package does not build for it.
    """
    known = trt.ComputeCapability
    if not hasattr(known, f"SM{number}"):
        names = ", ".join(str(each) for each in compute_capabilities(trt))
        raise EngineError(
            f"{trt.__name__} does not build for compute capability {number}; choose from {names}"
        )
    return getattr(known, f"SM{number}")


def compute_capabilities(trt: Any) -> list[int]:
    """Every compute capability that the package builds for without the device."""
    return sorted(int(name[2:]) for name in dir(trt.ComputeCapability) if name.startswith("SM"))


def has_timing_cache(trt: Any) -> bool:
    """Whether builds time kernels. TensorRT for RTX does not: its timing calls do nothing."""
    return not is_rtx(trt)
