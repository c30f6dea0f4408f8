"""score.py of a bundle, run as on a device: TensorRT and NumPy alone, stand-ins for both ends of CUDA."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

import mobileone_q as mq
from mobileone_q.data import sample
from mobileone_q.deploy import run_image
from mobileone_q.deploy.run_image import preprocess, read_image
from mobileone_q.runs.storage.folder import RunFolder
from tests.helpers.cli import invoke, refused
from tests.helpers.sample import calibrated_sample

IMAGES = 60
# The "engine" is a table: the SHA-256 of an input's bytes, and the logits for it.
TENSORRT = """
import ctypes, hashlib, json
import numpy as np
__version__ = "10.3.0"
class Logger: pass
class Context:
    def __init__(self, table): self.table, self.addresses = table, {}
    def set_input_shape(self, name, shape): self.size = int(np.prod(shape)); return True
    def get_tensor_shape(self, name): return (1, len(next(iter(self.table.values()))))
    def set_tensor_address(self, name, address): self.addresses[name] = address; return True
    def execute_async_v3(self, stream):
        def at(name, size):
            return np.ctypeslib.as_array((ctypes.c_float * size).from_address(self.addresses[name]))
        logits = self.table[hashlib.sha256(at("input", self.size).tobytes()).hexdigest()]
        at("logits", len(logits))[:] = logits
        return True
class Engine:
    def __init__(self, table): self.table = table
    def create_execution_context(self): return Context(self.table)
class Runtime:
    def __init__(self, logger): pass
    def deserialize_cuda_engine(self, data): return Engine(json.loads(data)) if data[:1] == b"{" else None
"""
CUDART = """
#include <stdlib.h>
#include <string.h>
int cudaMalloc(void **p, size_t n) { *p = malloc(n); return *p == 0; }
int cudaMemcpy(void *to, const void *from, size_t n, int kind) { memcpy(to, from, n); return 0; }
int cudaFree(void *p) { free(p); return 0; }
int cudaDeviceSynchronize(void) { return 0; }
"""


def write_images(folder):
    """Images of the sample's evaluation split as PPM files, in a folder per class."""
    source = mq.sample_images("evaluation")
    names = [f"c{number} {name}" for number, name in enumerate(sample.CLASSES)]
    folder.mkdir()
    (folder / "classes.txt").write_text("\n".join(names) + "\n")
    for index in range(IMAGES):
        place = folder / f"c{source.label(index)}" / f"{index}.ppm"
        place.parent.mkdir(exist_ok=True)
        source.open(index).convert("RGB").resize((32, 32)).save(place)
    return folder


@pytest.fixture(scope="module")
def device(once, tmp_path_factory):
    """A bundle with a reference, the images, and stand-ins for TensorRT and the CUDA runtime."""
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler for the stand-in of the CUDA runtime")
    folder = tmp_path_factory.mktemp("device")
    shutil.copytree(calibrated_sample(once, "tensorrt") / "run", folder / "run")
    images, bundle = write_images(folder / "images"), folder / "bundle"
    asked = ("--int8", "--bundle", bundle, "--with-reference", images)
    invoke("build-engine", folder / "run", *asked)
    stand_ins = folder / "stand-ins"
    stand_ins.mkdir()
    (stand_ins / "tensorrt.py").write_text(TENSORRT)
    for name in ("torch", "mobileone_q", "PIL"):
        (stand_ins / f"{name}.py").write_text(f"raise ImportError('no {name} on this device')")
    (folder / "cudart.c").write_text(CUDART)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "libcudart.so", folder / "cudart.c"], check=True)
    return folder


def make_engine(device, change=lambda model: None, columns=slice(None)):
    """An engine file that gives what the run's INT8 network gives, after ``change``."""
    model = RunFolder(device / "run").load_quantized()
    change(model)
    settings = json.loads((device / "bundle" / "preprocessing.json").read_text())
    inputs = [preprocess(read_image(path), settings) for path in sorted(device.glob("images/*/*.ppm"))]
    with torch.no_grad():
        logits = model(torch.from_numpy(np.concatenate(inputs))).numpy()[:, columns]
    keys = [hashlib.sha256(np.ascontiguousarray(x, np.float32).tobytes()).hexdigest() for x in inputs]
    table = dict(zip(keys, logits.tolist()))
    (device / "bundle" / "model.plan").write_text(json.dumps(table))


def score(device, folder=None):
    environment = os.environ | {
        "PYTHONPATH": str(device / "stand-ins"),
        "CUDART": str(device / "libcudart.so"),
    }
    words = [sys.executable, device / "bundle" / "score.py", device / "bundle" / "model.plan"]
    words.append(folder or device / "images")
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def result(device):
    return json.loads((device / "bundle" / "score.json").read_text())


def test_a_kept_promise_and_its_way_back(device):
    make_engine(device)
    layers = {"Layers": [], "Bindings": []}
    profile = [{"count": 5}, {"name": "stem", "medianMs": 0.25}, {"name": "head", "medianMs": 0.5}]
    power = {"VDD_IN": {"mean": 7.25, "max": 9.0}}
    state = {"power_mode": "MAXN", "clocks_mhz": {"gpu": 918.0}, "power_w": power, "samples": 29}
    for part, value in (("layers", layers), ("profile", profile), ("device", state)):
        (device / "bundle" / f"model.plan.{part}.json").write_text(json.dumps(value))
    done = score(device)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("promise kept: agreement ")
    facts = result(device)["score"]
    assert (facts["images"], facts["compared"], facts["labelled"]) == (IMAGES, IMAGES, IMAGES)
    assert facts["agreement"] == facts["expected"]["agreement"]  # the very same network
    assert facts["kl"] == pytest.approx(facts["expected"]["kl"], rel=0.05)
    assert facts["top1"] > 0.7
    path = device / "bundle" / "score.json"
    text = invoke("profile", "--from", path)
    assert "promise kept" in text
    assert "sum of blocks      0.750" in text
    said = "power mode MAXN, gpu 918 MHz, VDD_IN 7.25 W (at most 9.00)"
    assert said in text
    assert said in invoke("report", device / "run", "--from", path)
    assert "promise kept" in invoke("report", device / "run")
    assert "promise kept" in (device / "run" / "report.html").read_text(encoding="utf-8")
    report = json.loads((device / "run" / "report.json").read_text())
    assert report["device"]["top1"] == facts["top1"]


def test_wrong_grids_break_the_promise(device):
    def wrong(model):
        for _, block in list(model.blocks())[5:]:
            block.input_scale.mul_(8)  # a grid of 32 codes instead of 255

    make_engine(device, wrong)
    done = score(device)
    assert done.returncode == 1
    assert done.stdout.startswith("promise broken: agreement ")
    assert "rebuild with build.sh" in done.stdout
    assert result(device)["score"]["verdict"] == "broken"


def test_wrong_grids_are_seen_without_a_reference_too(device):
    def wrong(model):
        for _, block in list(model.blocks())[5:]:
            block.input_scale.div_(16)  # the grid ends at a sixteenth of the range

    make_engine(device, wrong)
    reference = device / "bundle" / "reference.npz"
    kept = reference.read_bytes()
    reference.unlink()
    try:
        done = score(device)
        assert done.returncode == 1
        assert "top-1 must be at least" in done.stdout
        make_engine(device)
        assert score(device).stdout.startswith("promise kept: top-1 ")
        assert result(device)["score"]["compared"] == 0
    finally:
        reference.write_bytes(kept)


def test_a_foreign_engine_is_refused(device):
    make_engine(device, columns=slice(5))
    done = score(device)
    assert done.returncode == 1
    assert "gives 5 values and this bundle's network 10: it is not an engine of this bundle" in done.stderr
    (device / "bundle" / "model.plan").write_bytes(b"no engine")
    assert "TensorRT cannot load" in score(device).stderr


def test_what_cannot_be_scored(device, tmp_path):
    make_engine(device)
    assert "there is no image in" in score(device, tmp_path).stderr
    assert "is not a folder" in score(device, tmp_path / "none").stderr
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(next(device.glob("images/*/*.ppm")), flat / "unknown.ppm")
    done = score(device, flat)
    assert "promise unknown: no image has a label or a reference" in done.stdout
    assert done.returncode == 0


def test_a_score_of_another_run_or_form_is_refused(device, tmp_path):
    make_engine(device)
    score(device)
    value = result(device)
    for key, wrong, complaint in (
        ("graph_sha256", "0" * 64, "was measured with a graph that"),
        ("top1", "x", "is not what score.py writes: top1"),
        ("verdict", "fine", "is not what score.py writes: verdict"),
        ("state", {"power_mode": 15}, "is not what score.py writes: state.power_mode"),
    ):
        (tmp_path / "a.json").write_text(json.dumps(value | {"score": value["score"] | {key: wrong}}))
        assert complaint in refused("report", device / "run", "--from", tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{}")
    assert "it has no `score`" in refused("report", device / "run", "--from", tmp_path / "a.json")
    asked = ("--int8", "--with-reference", device / "images")
    assert "pass --bundle DIR too" in refused("build-engine", device / "run", *asked)


def test_an_issue_report_has_no_names_and_no_paths(device, tmp_path, monkeypatch):
    make_engine(device)
    score(device)
    monkeypatch.setattr("getpass.getuser", lambda: "alice")
    monkeypatch.setattr("socket.gethostname", lambda: "wonderland")
    log = device / "run" / "engines" / "int8.tensorrt.plan.log"
    log.write_text("reading /home/alice/nets/int8.onnx on wonderland for alice\nC:\\Users\\alice\\a.onnx\n")
    path = device / "bundle" / "score.json"
    archive = tmp_path / "issue.zip"
    said = invoke("doctor", device / "run", "--report", archive, "--from", path)
    assert "look through it before you attach it" in said
    with zipfile.ZipFile(archive) as file:
        texts = {name: file.read(name).decode() for name in file.namelist()}
    assert {"doctor.json", "report.json", "score.json", log.name} <= texts.keys()
    together = "\n".join(texts.values())
    for private in ("alice", "wonderland", "/home/", "/tmp/", str(tmp_path)):
        assert private not in together
    assert texts[log.name].startswith("reading …/int8.onnx on HOST for USER\n…/a.onnx")
    assert json.loads(texts["score.json"])["score"]["verdict"] == "kept"
    assert json.loads(texts["doctor.json"])["versions"]["mobileone-q"] == mq.__version__
    assert "exists; choose another name" in refused("doctor", "--report", archive)
    log.unlink()


@pytest.mark.parametrize(
    ("script", "modules"),
    [
        ("score", {"ctypes", "hashlib", "json", "math", "os", "sys", "numpy", "tensorrt"}),
        ("record", {"json", "re", "statistics", "subprocess", "sys", "threading"}),
    ],
)
def test_the_scripts_are_python_3_8(script, modules):
    import ast
    from pathlib import Path

    source = Path(mq.__file__).parent / "deploy" / f"{script}.py"
    tree = ast.parse(source.read_text(), feature_version=(3, 8))
    assert {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names} == modules


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("read", [run_image.read_labels, run_image.read_settings])
def test_a_pipe_among_a_bundles_files_is_not_waited_for(read, tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(SystemExit, match="not a plain file"):
        read(tmp_path / "x")


@pytest.mark.parametrize("name", ["none.plan", "a" * 5000])
def test_an_engine_that_is_not_there_is_said(tmp_path, monkeypatch, name):
    monkeypatch.setattr("sys.argv", ["run_image.py", str(tmp_path / name), "x.ppm"])
    with pytest.raises(SystemExit, match=rf"there is no engine at .*{name}; build it"):
        run_image.main()
