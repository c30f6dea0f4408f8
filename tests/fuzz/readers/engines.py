"""Readers of graphs, engines, their sidecars, and TensorRT's caches."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

from calibrate.recipe import Recipe
from mobileone_q.engines import BuildOptions, EngineInfo, backend
from mobileone_q.engines.base import sidecar
from mobileone_q.engines.metadata import has_only_int8_grids, read_target
from mobileone_q.engines.tensorrt import timing_cache
from mobileone_q.engines.tensorrt.calibration_cache import for_version
from mobileone_q.export.graph import export_onnx
from mobileone_q.files import sha256
from tests.fuzz.harness import Harness
from tests.fuzz.readers.documents import DEEP
from tests.fuzz.readers.weights import tiny
from tests.helpers.calibrated import calibrated_network, fused_network
from tests.helpers.mutations import damaged, json_edited, json_resealed
from tests.helpers.networks import random_images
from tests.helpers.structures import TEXT, odd_proto, rearranged

CACHE = b"TRT-8502-EntropyCalibration2\ninput: 3c008912\nstem: 3d810204\n"


def graphs(folder: Path) -> list[bytes]:
    """A graph in floating point and one for each form of the integer grids."""
    export_onnx(fused_network(tiny()), folder / "fp32.onnx")
    export_onnx(calibrated_network(tiny(), Recipe(target="tensorrt")), folder / "int8.onnx")
    export_onnx(calibrated_network(tiny(), Recipe(target="onnxruntime")), folder / "ort.onnx")
    return [(folder / name).read_bytes() for name in ("fp32.onnx", "int8.onnx", "ort.onnx")]


def use_graph(folder: Path, content: bytes) -> None:
    """Build an engine of a damaged graph, and run it."""
    (folder / "g.onnx").write_bytes(content)
    built = backend("onnxruntime")
    built.build(folder / "g.onnx", folder / "e.onnx", BuildOptions())
    with built.load(folder / "e.onnx", folder / "g.onnx") as engine:
        engine.run(random_images(tiny(), 1).numpy())


def use_metadata(folder: Path, content: bytes) -> None:
    (folder / "g.onnx").write_bytes(content)
    read_target(folder / "g.onnx")
    has_only_int8_grids(folder / "g.onnx")


@functools.cache
def _engine() -> tuple[bytes, bytes]:
    """An engine and its sidecar."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graphs(folder)
        backend("onnxruntime").build(folder / "int8.onnx", folder / "e.onnx", BuildOptions("int8"))
        return (folder / "e.onnx").read_bytes(), sidecar(folder / "e.onnx").read_bytes()


def use_engine(folder: Path, content: bytes) -> None:
    """A damaged engine whose sidecar fits it: what loads it has to find the damage."""
    engine = folder / "e.onnx"
    engine.write_bytes(content)
    sidecar(engine).write_bytes(_engine()[1])
    replace(EngineInfo.load(engine), engine_sha256=sha256(engine)).save(engine)
    with backend("onnxruntime").load(engine) as loaded:
        loaded.run(random_images(tiny(), 1).numpy())


def use_sidecar(folder: Path, content: bytes) -> None:
    engine = folder / "e.onnx"
    engine.write_bytes(_engine()[0])
    sidecar(engine).write_bytes(content)
    backend("onnxruntime").load(engine).close()


def use_calibration_cache(folder: Path, content: bytes) -> None:
    (folder / "int8.calib").write_bytes(content)
    for_version(folder / "int8.calib", "10.3.0")


class TimingConfig:
    """Stands in for TensorRT's configuration: takes a timing cache that begins as its own do."""

    def __init__(self) -> None:
        self.data = b""

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        is_known = cache[:4] in (b"", b"TIMC")
        if is_known:
            self.data = cache
        return is_known

    def get_timing_cache(self) -> TimingConfig:
        return self

    def combine(self, other: bytes, ignore_mismatch: bool) -> bool:
        return other[:4] == b"TIMC"

    def serialize(self) -> bytes:
        return self.data


def use_timing_cache(folder: Path, content: bytes) -> None:
    """A damaged timing cache is left aside, and replaced by what the build learned."""
    path = folder / "t.cache"
    path.write_bytes(content)
    config = TimingConfig()
    timing_cache.attach(config, path)
    assert timing_cache.keep(config, path)


GRAPH_DAMAGES = (damaged, rearranged, odd_proto, odd_proto)
HARNESSES = (
    Harness("onnx-graph", graphs, use_graph, GRAPH_DAMAGES, weight=0.4),
    Harness("onnx-metadata", graphs, use_metadata, GRAPH_DAMAGES),
    Harness("engine", lambda _: [_engine()[0]], use_engine, GRAPH_DAMAGES, weight=0.4),
    Harness(
        "engine-sidecar", lambda _: [_engine()[1]], use_sidecar,
        (damaged, json_edited, json_resealed, json_resealed, *TEXT), DEEP, says=("{folder}",), weight=0.4,
    ),
    Harness(
        "calibration-cache", lambda _: [CACHE], use_calibration_cache, (damaged, *TEXT), says=("{folder}",)
    ),
    Harness("timing-cache", lambda _: [b"TIMC\x01\x02\x03\x04" * 8], use_timing_cache, weight=0.2),
)  # fmt: skip
