"""Every TensorRT in the field, without one: no name is used on a version that lacks it."""

from __future__ import annotations

import json
import warnings
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.engines import BuildOptions
from mobileone_q.engines.base import sidecar
from mobileone_q.engines.tensorrt import build as building
from mobileone_q.engines.tensorrt import engine as module
from mobileone_q.engines.tensorrt import versions
from mobileone_q.errors import EngineError
from mobileone_q.export.graph import export_onnx
from mobileone_q.files import sealed
from mobileone_q.models.fuse import fuse_branches
from tests.helpers.graphs import mark
from tests.helpers.networks import random_images, random_model, small
from tests.helpers.recorded_tensorrt import VERSIONS, Recorded

OLD, TYPED = ("8.5.2", "8.6.1"), ("10.3.0", "10.13.3", "10.16.1", "11.1.0", "rtx-1.7.1")
ABSENT = {  # what each option needs, and the versions that lack it
    "optimization_level": ("8.5.2",),
    "version_compatible": ("8.5.2", "rtx-1.7.1"),
    "hardware_compatible": ("8.5.2", "rtx-1.7.1"),
    "dla_core": ("10.13.3", "10.16.1", "11.1.0", "rtx-1.7.1"),
    "calibration_cache": ("11.1.0", "rtx-1.7.1"),
}
WANTED = {"optimization_level": 4, "version_compatible": True, "hardware_compatible": True, "dla_core": 1}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    fused = fuse_branches(random_model(small()))
    images = [(random_images(fused.arch, 8).numpy(), None)]
    export_onnx(fused, folder / "fp32.onnx")
    export_onnx(fused, folder / "fp16.onnx", float_precision="fp16")
    for target, name in (("tensorrt", "int8"), ("dla", "dla"), ("dla-qdq", "dla-qdq")):
        export_onnx(calibrate(fused, images, Recipe.bare(target=target)), folder / f"{name}.onnx")
        mark(folder / f"{name}.onnx", target=target, precision="int8")
    return folder


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture
def recorded(version, shared, monkeypatch, tmp_path):
    trt = Recorded(version, shared)
    backend = module.TensorRTForRTX() if version.startswith("rtx") else module.TensorRT()
    monkeypatch.setattr(type(backend), "_import", lambda self: trt)
    monkeypatch.setattr(module, "gpu_name", lambda: "a GPU")
    monkeypatch.setenv("MOBILEONE_Q_CACHE", str(tmp_path / "cache"))
    return trt, backend


def int8_graph(version):
    """The INT8 graph that takes every option of a version: DLA's where it has DLA."""
    return "int8.onnx" if version in ABSENT["dla_core"] else "dla.onnx"


def everything(version, graphs):
    """Options with all that the version has."""
    wanted = {name: value for name, value in WANTED.items() if version not in ABSENT[name]}
    if version not in ABSENT["dla_core"]:
        wanted["calibration_cache"] = str(graphs / "dla.calib")
    if version.startswith("rtx"):
        wanted["compute_capabilities"] = (75, 86)
    return BuildOptions("int8", "fp16", (1, 2, 8), **wanted)


pytestmark = pytest.mark.shared


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_plain_builds_in_every_precision(recorded, version, graphs, tmp_path, precision):
    trt, backend = recorded
    path = tmp_path / "engine.plan"
    backend.build(graphs / f"{precision}.onnx", path, BuildOptions(precision, float_precision="fp16"))
    assert path.read_bytes() == b"engine"
    weak = {"fp32": set(), "fp16": {"FP16"}, "int8": {"INT8", "FP16"}}[precision] | {"EXPLICIT_BATCH"}
    assert trt.flags == (weak if version in OLD else {"STRONGLY_TYPED"})
    has_two = version in TYPED and not version.startswith("rtx")  # one image, and the range beside it
    assert trt.calls.count("IBuilderConfig.add_optimization_profile") == (2 if has_two else 1)


def test_every_option_that_a_version_has(recorded, version, graphs, tmp_path):
    trt, backend = recorded
    path = tmp_path / "engine.plan"
    options = everything(version, graphs)
    info = backend.build(graphs / int8_graph(version), path, options)
    assert info.options["batch"] == (1, 2, 8)
    config = {key.removeprefix("IBuilderConfig."): value for key, value in trt.set.items()}
    assert config.get("builder_optimization_level") == options.optimization_level
    assert config.get("DLA_core") == options.dla_core
    assert ("hardware_compatibility_level" in config) == options.hardware_compatible
    assert ("int8_calibrator" in config) == (options.calibration_cache is not None)
    assert ("progress_monitor" in config) == (version in TYPED)
    assert config.get("num_compute_capabilities") == (2 if version == "rtx-1.7.1" else None)
    assert ("GPU_FALLBACK" in trt.flags) == (options.dla_core is not None)
    assert ("VERSION_COMPATIBLE" in trt.flags) == options.version_compatible
    weakly_typed = version in OLD or options.calibration_cache is not None
    assert ({"INT8", "FP16"} <= trt.flags) == weakly_typed
    assert ("STRONGLY_TYPED" in trt.flags) != weakly_typed
    timings = list((tmp_path / "cache").rglob("*.cache"))
    assert [each.read_bytes() for each in timings] == ([] if version == "rtx-1.7.1" else [b"timings"])
    if options.calibration_cache:
        assert config["int8_calibrator"].get_batch(["input"]) is None
        first = config["int8_calibrator"].read_calibration_cache().split(b"\n")[0].decode()
        numbers = {"8.5.2": 8502, "8.6.1": 8601, "10.3.0": 100300}
        assert first == f"TRT-{numbers[version]}-EntropyCalibration2"


@pytest.mark.parametrize("option", ABSENT)
def test_what_a_version_lacks_is_refused_in_words(recorded, version, graphs, tmp_path, option):
    trt, backend = recorded
    value = str(graphs / "dla.calib") if option == "calibration_cache" else WANTED[option]
    options = BuildOptions("fp16", **{option: value})
    if version not in ABSENT[option]:
        versions.refuse_unsupported(trt, options)
        return
    with pytest.raises(EngineError, match=f"{trt.__version__} has no .*--") as caught:
        backend.build(graphs / "fp32.onnx", tmp_path / "e", options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "e").exists()


def test_loading_running_and_profiling(recorded, version, graphs, tmp_path, monkeypatch):
    trt, backend = recorded
    path = tmp_path / "engine.plan"
    backend.build(
        graphs / "int8.onnx",
        path,
        BuildOptions(version_compatible=version not in ABSENT["version_compatible"]),
    )
    stream = SimpleNamespace(cuda_stream=7, synchronize=lambda: None)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda shape, device: empty(shape))
    loaded = backend.load(path, graphs / "int8.onnx")
    x = np.zeros((2, 3, 32, 32), np.float32)
    assert loaded.run(x).shape == (2, 10)
    assert "IExecutionContext.execute_async_v3" in trt.calls
    assert trt.calls.count("IExecutionContext.set_optimization_profile_async") == 1
    loaded.run(x[:1])  # the profile of one image is the first, which a context has from the start
    assert trt.calls.count("IExecutionContext.set_optimization_profile_async") == 1
    with loaded.layer_profiler() as profiler:
        profiler.run(x)
    assert len(profiler.runs) == 1
    assert loaded.layer_information() == {"Layers": [], "Bindings": []}
    loaded.close()
    for use in (lambda: loaded.run(x), loaded.layer_profiler, loaded.inspection):
        with pytest.raises(ValueError, match=r"engine\.plan is closed; load it again"):
            use()


@pytest.mark.parametrize("version", ["10.3.0"], indirect=True)
def test_closing_frees_each_part_before_what_it_needs(recorded, version, graphs, tmp_path):
    _, backend = recorded
    path = tmp_path / "engine.plan"
    backend.build(graphs / "fp32.onnx", path, BuildOptions("fp32"))
    freed = []
    with backend.load(path) as engine:
        for part in ("_runtime", "_engine", "_context"):
            weakref.finalize(getattr(engine, part), freed.append, part)
    assert freed == ["_context", "_engine", "_runtime"]
    engine.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del engine
    forgotten = backend.load(path)
    with pytest.warns(ResourceWarning, match=r"engine\.plan was not closed"):
        del forgotten


def test_an_engine_that_cannot_be_deserialized(recorded, version, graphs, tmp_path):
    trt, backend = recorded
    path = tmp_path / "engine.plan"
    backend.build(graphs / "fp32.onnx", path, BuildOptions("fp32"))
    trt.can_deserialize = False
    with pytest.raises(EngineError, match=f"{backend.title} cannot load .*; build it again on this device"):
        backend.load(path)


GUARDED = {  # asked for with hasattr: without it another way is taken, or the option is refused
    ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
    ("IBuilderConfig", "set_calibration_profile"),
}


def test_each_name_in_use_is_missed_when_it_goes(recorded, version, graphs, tmp_path):
    """Not one name is used behind the check's back: forgetting any of them fails the build."""
    trt, backend = recorded
    options = everything(version, graphs)
    backend.build(graphs / int8_graph(version), tmp_path / "e", options)
    used = {(name, member) for name, member in trt.used if (name, member) not in GUARDED}
    assert len(used) > 20
    for name, member in sorted(used):
        before = trt.classes[name]
        trt.without(name, member)
        with pytest.raises((AttributeError, EngineError), match=r"has no|does not build for"):
            backend.build(graphs / int8_graph(version), tmp_path / "e", options)
        trt.classes[name] = before


def test_a_misspelling_is_noticed(recorded, version, graphs, tmp_path, monkeypatch):
    _, backend = recorded
    configure = versions.configure

    def misspelt(trt, config, options):
        configure(trt, config, options)
        config.profiling_verbositi = trt.ProfilingVerbosity.DETAILED

    monkeypatch.setattr(versions, "configure", misspelt)
    with pytest.raises(AttributeError, match="IBuilderConfig has no profiling_verbositi"):
        backend.build(graphs / "int8.onnx", tmp_path / "e", BuildOptions())


def test_a_misspelt_override_is_noticed(recorded, version):
    trt, _ = recorded
    with pytest.raises(AttributeError, match="IProfiler has no report_layer_times"):
        type("Recorder", (trt.IProfiler,), {"report_layer_times": lambda *_: None})


@pytest.mark.parametrize("version", ["8.5.2", "8.6.1", "10.3.0"], indirect=True)
def test_a_dla_core_that_is_not_there(recorded, version, graphs, tmp_path):
    _, backend = recorded
    options = BuildOptions(dla_core=2, calibration_cache=str(graphs / "dla.calib"))
    with pytest.raises(EngineError, match="no DLA core 2: this device has 2"):
        backend.build(graphs / "dla.onnx", tmp_path / "e", options)


@pytest.mark.parametrize("version", ["11.1.0"], indirect=True)  # the latest whose names are recorded
def test_dla_by_version(recorded, version, graphs, tmp_path):
    """A cache up to 10.7, nothing up to 11.4.0, and Q/DQ with the parser's flags from 11.4.1 on."""
    trt, backend = recorded
    qdq, cached = (
        BuildOptions(dla_core=1),
        BuildOptions(dla_core=1, calibration_cache=str(graphs / "dla.calib")),
    )
    trt.__version__ = "11.4.1"
    backend.build(graphs / "dla-qdq.onnx", tmp_path / "e", qdq)
    wanted = {"ENABLE_UINT8_AND_ASYMMETRIC_QUANTIZATION_DLA", "ADJUST_FOR_DLA", "GPU_FALLBACK"}
    assert wanted <= trt.flags
    with pytest.raises(EngineError, match=r"no calibration cache.*--target dla-qdq"):
        backend.build(graphs / "dla.onnx", tmp_path / "e", cached)
    for number in ("10.8.0", "10.16.1", "11.0.0", "11.4.0"):
        trt.__version__ = number
        for graph, options in (
            ("dla-qdq.onnx", qdq),
            ("dla.onnx", cached),
            ("fp16.onnx", replace(qdq, precision="fp16")),
        ):
            with pytest.raises(EngineError, match=r"has no (DLA; drop --dla|calibration cache)"):
                backend.build(graphs / graph, tmp_path / "e", options)
    for number in ("8.5.2", "10.7.0"):
        trt.__version__ = number
        with pytest.raises(EngineError, match=r"no Q/DQ on DLA .*--target dla,"):
            backend.build(graphs / "dla-qdq.onnx", tmp_path / "e", qdq)


def test_progress_adds_up_to_a_hundred(shared):
    steps = []
    monitor = building.make_monitor(Recorded("10.3.0", shared), steps.append)
    monitor.phase_start("Building", None, 3)
    monitor.phase_start("Tactics", "Building", 7)
    for step in range(7):
        assert monitor.step_complete("Tactics", step)
    for step in range(3):
        assert monitor.step_complete("Building", step)
    monitor.phase_finish("Tactics")
    monitor.phase_finish("Building")
    assert steps == [33, 33, 34]


def built(recorded, graphs, tmp_path, **facts):
    """An engine whose sidecar says something else than the truth."""
    _, backend = recorded
    path = tmp_path / "engine.plan"
    backend.build(graphs / "int8.onnx", path, BuildOptions())
    values = json.loads(sidecar(path).read_text())
    options = values["options"] | facts.pop("options", {})
    sidecar(path).write_text(json.dumps(sealed(values | facts | {"options": options})))
    return backend, path


@pytest.mark.parametrize("version", ["10.3.0"], indirect=True)
def test_a_foreign_engine_is_refused_with_the_reason(recorded, version, graphs, tmp_path):
    backend, path = built(recorded, graphs, tmp_path, device="another GPU")
    with pytest.raises(
        EngineError, match="was built for another GPU, and this is a GPU; build it again here"
    ):
        backend.load(path)
    with pytest.raises(EngineError, match=r"was built from another fp32\.onnx"):
        backend.load(path, graphs / "fp32.onnx")
    backend, path = built(recorded, graphs, tmp_path, device="another", options={"hardware_compatible": True})
    assert backend.load(path).info.device == "another"


@pytest.mark.parametrize("version", ["10.3.0"], indirect=True)
@pytest.mark.parametrize(
    ("runtime", "compatible", "runs"),
    [
        ("tensorrt 10.1.0", True, True),
        ("tensorrt 10.1.0", False, False),
        ("tensorrt 10.4.0", True, False),  # never on an older version than its own
        ("tensorrt 8.6.1", True, False),
        ("tensorrt_rtx 10.1.0", True, False),
    ],
)
def test_version_compatible_engines(recorded, version, graphs, tmp_path, runtime, compatible, runs):
    changes = {"runtime": runtime, "options": {"version_compatible": compatible}}
    backend, path = built(recorded, graphs, tmp_path, **changes)
    if runs:
        assert backend.load(path)
        assert recorded[0].set["Runtime.engine_host_code_allowed"] is True
        return
    with pytest.raises(EngineError, match=f"was built by {runtime} and tensorrt 10.3.0 is installed"):
        backend.load(path)


def test_warnings_are_kept_beside_the_engine_and_summarized(shared, tmp_path):
    logger = building.make_logger(Recorded("10.3.0", shared))
    for severity, message in (
        (2, "slow kernel"),
        (3, "only information"),
        (2, "slow kernel"),
        (1, "bad\nvery"),
    ):
        logger.log(severity, message)
    path = tmp_path / "engine.plan"
    summary = building.keep_log(logger, path)
    assert summary == (
        f"3 builder messages of 2 kinds, mostly warning: slow kernel; all in {building.log_path(path)}"
    )
    assert (
        building.log_path(path).read_text()
        == "warning: slow kernel\nwarning: slow kernel\nerror: bad\nvery\n"
    )
    logger.messages.clear()
    assert building.keep_log(logger, path) == ""
    assert not building.log_path(path).exists()
