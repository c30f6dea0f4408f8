"""The differences between TensorRT 8.5 to 11 and TensorRT for RTX, in one place.

The package itself is asked what it has: a version is known by the classes, flags and properties
that it lacks, and an option that it lacks is refused in words. The version number decides only what
has no name to ask for: the first line of a calibration cache, and DLA, whose names outlived it.

| precision     | 8.5, 8.6                  | 10.x                                  | 11, RTX          |
|---------------|---------------------------|---------------------------------------|------------------|
| typing        | weak: builder flags       | STRONGLY_TYPED: the graph's own types | the same, always |
| FP16          | BuilderFlag.FP16          | float16 in the graph                  | the same         |
| INT8          | Q/DQ and BuilderFlag.INT8 | Q/DQ                                  | Q/DQ             |
| INT8 on DLA   | calibration cache         | the same, weakly typed, up to 10.7    | Q/DQ from 11.4.1 |
"""

from __future__ import annotations

from typing import Any

from mobileone_q.engines.settings import BuildOptions
from mobileone_q.errors import EngineError
from mobileone_q.jetpack import NO_DLA, DlaForm, dla_form


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
         "no calibration cache, which 11 took away; for --dla, calibrate again with --target dla-qdq"),
    ]  # fmt: skip
    for is_wanted, is_there, reason in wanting:
        if is_wanted and not is_there:
            raise EngineError(f"{title} has {reason}")
    if options.dla_core is not None:
        _refuse_dla(title, dla_form(version_numbers(trt)), options)


def _refuse_dla(title: str, form: DlaForm | None, options: BuildOptions) -> None:
    """Check that this version has DLA, and takes the form in which the scales of an INT8 graph come."""
    if form is None:
        raise EngineError(f"{title} has no DLA; drop --dla. {NO_DLA}")
    if form == "cache" and options.precision == "int8" and options.calibration_cache is None:
        raise EngineError(
            f"{title} has no Q/DQ on DLA (11.4.1 brought it): calibrate again with --target dla, "
            "or drop --dla and calibrate with --target tensorrt"
        )


def version_numbers(trt: Any) -> tuple[int, ...]:
    """The package's version as numbers: (10, 3, 0)."""
    return tuple(int(part) for part in trt.__version__.split(".")[:3])


def parser_flags(trt: Any, options: BuildOptions) -> list[Any]:
    """The parser's flags: for Q/DQ on DLA, that uint8 codes stay what they are.

    Source: TensorRT 11.4.0, "ONNX Parser Flags for DLA".
    """
    if options.dla_core is None or dla_form(version_numbers(trt)) != "qdq":
        return []
    known = trt.OnnxParserFlag
    return [known.ENABLE_UINT8_AND_ASYMMETRIC_QUANTIZATION_DLA, known.ADJUST_FOR_DLA]


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


def batch_profiles(trt: Any, options: BuildOptions) -> tuple[tuple[int, int, int], ...]:
    """The (smallest, typical, largest) batch of each optimization profile that is built.

    Before 10 there is one: trtexec takes no more, and the inspector lists every layer once a profile.
    TensorRT for RTX is a check of form, for which one is enough.
    """
    return options.profiles if is_strongly_typed(trt) and not is_rtx(trt) else (options.batch,)


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
