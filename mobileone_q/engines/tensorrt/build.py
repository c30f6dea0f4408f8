"""Builds a serialized TensorRT engine from an ONNX file: parse, configure, build, keep the warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobileone_q.engines.settings import BuildOptions
from mobileone_q.engines.tensorrt import timing_cache, versions
from mobileone_q.engines.tensorrt.calibration_cache import for_version
from mobileone_q.errors import EngineError
from mobileone_q.files import write_text
from mobileone_q.progress import Advance, silent

SEVERITIES = ("internal error", "error", "warning")  # ILogger.Severity 0 to 2; 3 info, 4 verbose
HUNDRED = 100


def make_logger(trt: Any) -> Any:
    """A logger that keeps the complaints of the builder and the runtime."""

    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) < len(SEVERITIES):
                self.messages.append(f"{SEVERITIES[int(severity)]}: {message}")

        def summary(self) -> str:
            """The last complaint, which is the reason for a failure."""
            last = self.messages[-1].splitlines()[0] if self.messages else "no reason given"
            return last.split(": ", 1)[-1]

    return Logger()


def log_path(engine_path: Path) -> Path:
    """Where the builder's complaints about an engine stand."""
    return engine_path.with_name(f"{engine_path.name}.log")


def summarize(messages: Sequence[str]) -> str:
    """A builder's complaints in one line: their number and the most frequent; empty without any."""
    if not messages:
        return ""
    text, times = Counter(message.splitlines()[0] for message in messages).most_common(1)[0]
    kinds = len(set(messages))
    count = f"{len(messages)} builder message{'s' if len(messages) > 1 else ''}"
    repeated = f" of {kinds} kinds" if kinds > 1 else ""
    return f"{count}{repeated}, {'mostly' if times > 1 and kinds > 1 else 'first'} {text}"


def serialize(
    trt: Any, logger: Any, onnx_path: Path, options: BuildOptions, runtime: str, device: str,
    advance: Advance = silent,
) -> Any:  # fmt: skip
    """Parse an ONNX file and build its serialized engine; None where the builder gives up.

    ``advance(n)`` is called when another ``n`` percent are done, but never by versions without
    IProgressMonitor.

    Raises:
        EngineError: this version lacks an option, the device lacks the DLA core, or the parser
            refuses the graph.
    """
    versions.refuse_unsupported(trt, options)
    builder = trt.Builder(logger)
    if options.dla_core is not None and not 0 <= options.dla_core < builder.num_DLA_cores:
        raise EngineError(
            f"there is no DLA core {options.dla_core}: this device has {builder.num_DLA_cores} "
            "(Xavier, Orin NX and AGX Orin have DLA; Orin Nano and Thor have none); drop --dla"
        )
    network = parse(trt, logger, builder, onnx_path, options)
    config = builder.create_builder_config()
    versions.configure(trt, config, options)
    if options.calibration_cache:
        config.int8_calibrator = make_calibrator(trt, Path(options.calibration_cache))
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = make_monitor(trt, advance)
    keeps_timings = options.timing_cache and versions.has_timing_cache(trt)
    cache = timing_cache.cache_path(runtime, device) if keeps_timings else None
    if cache is not None:
        timing_cache.attach(config, cache)
    image = tuple(network.get_input(0).shape)[1:]
    for batch in versions.batch_profiles(trt, options):
        profile = builder.create_optimization_profile()
        profile.set_shape("input", *((size, *image) for size in batch))
        config.add_optimization_profile(profile)
    if options.calibration_cache and hasattr(config, "set_calibration_profile"):
        config.set_calibration_profile(profile)  # avoids a warning; with a cache, nothing is calibrated
    plan = builder.build_serialized_network(network, config)
    if plan is not None and cache is not None:
        timing_cache.keep(config, cache)
    return plan


def parse(trt: Any, logger: Any, builder: Any, onnx_path: Path, options: BuildOptions) -> Any:
    """Read the network of an ONNX file, strongly typed where this version can.

    Raises:
        EngineError: the parser refuses the graph.
    """
    network = builder.create_network(versions.network_flags(trt, options))
    parser = trt.OnnxParser(network, logger)
    for flag in versions.parser_flags(trt, options):
        parser.set_flag(flag)
    if not parser.parse(onnx_path.read_bytes()):
        reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise EngineError(
            f"{trt.__name__} cannot parse {onnx_path}: {reasons[0] if reasons else logger.summary()}"
        )
    return network


def make_calibrator(trt: Any, cache: Path) -> Any:
    """A calibrator that hands over the scales of a cache. It has no images, so it never calibrates."""
    data = for_version(cache, trt.__version__)

    class Calibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: Sequence[str]) -> None:
            return None

        def read_calibration_cache(self) -> bytes:
            return data

        def write_calibration_cache(self, cache: Any) -> None:
            """Write nothing: the scales came from the cache."""

    return Calibrator()


def make_monitor(trt: Any, advance: Advance) -> Any:
    """A progress monitor that reports the steps of the outermost phase in percent."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self._outermost: str | None = None
            self._steps, self._percent = 1, 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None and self._outermost is None:
                self._outermost, self._steps = phase_name, max(1, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self._outermost:
                self._reach(HUNDRED * (step + 1) // self._steps)
            return True  # do not cancel the build

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self._outermost:
                self._reach(HUNDRED)

        def _reach(self, percent: int) -> None:
            percent = min(percent, HUNDRED)
            if percent > self._percent:
                advance(percent - self._percent)
                self._percent = percent

    return Monitor()


def keep_log(logger: Any, engine_path: Path) -> str:
    """Write the builder's complaints beside the engine, and return their summary."""
    path = log_path(engine_path)
    if not logger.messages:
        path.unlink(missing_ok=True)
        return ""
    write_text(path, "\n".join(logger.messages) + "\n")
    return f"{summarize(logger.messages)}; all in {path}"
