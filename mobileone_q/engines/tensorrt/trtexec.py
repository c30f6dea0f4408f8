"""The ``trtexec`` command that builds and profiles the same engine, for each version of TensorRT.

Sources: ``trtexec --help`` of 8.5, 8.6 and 10 (``samples/common/sampleOptions.cpp`` in the TensorRT
repository), and NVIDIA's TensorRT 11 migration guide, which says that --int8, --fp16 and --calib are
gone.
"""

from __future__ import annotations

from pathlib import Path

from mobileone_q.engines.settings import BuildOptions

EXECUTABLE = '"$TRTEXEC"'  # build.sh finds it
STRONG_SINCE, PROFILES_SINCE, FLAGS_GONE = 10, 10, 11


def trtexec_line(
    version: str, onnx: Path | str, engine: Path | str, options: BuildOptions, image: tuple[int, int, int]
) -> str:
    """The command for a version such as ``10.3``; ``image`` is the shape of one input, such
    as (channels, H, W).

    ``onnx`` must be the graph that the version needs. Before 10, every precision is built from
    ``fp32.onnx`` or ``int8.onnx`` with flags. From 10 on, FP16 types stand in the graph.
    """
    major, minor = (int(part) for part in version.split(".")[:2])
    words = [EXECUTABLE, f"--onnx={onnx}", f"--saveEngine={engine}"]
    profiles = options.profiles if major >= PROFILES_SINCE else (options.batch,)
    for index, batch in enumerate(profiles):
        words += [f"--profile={index}"] if len(profiles) > 1 else []
        for name, size in zip(("min", "opt", "max"), batch):
            words.append(f"--{name}Shapes=input:{'x'.join(map(str, (size, *image)))}")
    if len(profiles) > 1 and options.batch[1] > 1:
        words.append("--useProfile=1")  # the typical batch is what is timed
    sram = ",dlaSRAM:1" if options.dla_core is not None else ""  # MiB, all that a core has
    words.append(f"--memPoolSize=workspace:{options.workspace_mb}{sram}")
    if major >= STRONG_SINCE and not options.calibration_cache:
        words += ["--stronglyTyped"] if major < FLAGS_GONE else []
    else:
        words += ["--int8"] if options.precision == "int8" else []
        words += ["--fp16"] if options.float_kernels == "fp16" else []
    if options.calibration_cache:  # without constraints the faster precision wins, not the smaller
        words += [f"--calib={options.calibration_cache}", "--precisionConstraints=prefer"]
        words.append("--layerPrecisions=*:int8")
    has_levels = (major, minor) >= (8, 6)
    if options.optimization_level is not None and has_levels:
        words.append(f"--builderOptimizationLevel={options.optimization_level}")
    words += ["--versionCompatible"] if options.version_compatible and has_levels else []
    if options.hardware_compatible and has_levels:
        words.append("--hardwareCompatibilityLevel=ampere+")
    if options.dla_core is not None:
        words += [f"--useDLACore={options.dla_core}", "--allowGPUFallback"]
        words += ["--inputIOFormats=int8:dla_hwc4"] if options.direct_input else []
        if major >= FLAGS_GONE and options.precision == "int8":
            words += ["--uint8AsymmetricQuantizationDLA", "--adjustForDLA"]
    if major < FLAGS_GONE:  # 11 always does so
        words += ["--noDataTransfers", "--useSpinWait"]
        words += ["--useCudaGraph"] if options.dla_core is None else []  # trtexec has it not with DLA
    words += ["--profilingVerbosity=detailed", "--dumpProfile"]
    words += ["--separateProfileRun"] if major < FLAGS_GONE else []  # 11 always does so
    words += [f"--exportProfile={engine}.profile.json", f"--exportLayerInfo={engine}.layers.json"]
    return " ".join(words)
