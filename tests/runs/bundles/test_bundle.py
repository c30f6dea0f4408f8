"""The deployment folder, run as on a device: TensorRT and NumPy, nothing else to import."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.data import sample
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.deploy.run_image import laid_out, preprocess, read_image
from mobileone_q.engines import BuildOptions, backend
from mobileone_q.engines.tensorrt.calibration_cache import read_cache
from mobileone_q.errors import EngineError, RunError
from mobileone_q.export.graph import export_onnx
from mobileone_q.input_form import InputForm
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.runs.bundles.bundle import dla_input_scale, labels, write_bundle
from mobileone_q.runs.bundles.triton import write_triton
from mobileone_q.runs.engines.build import build_engines
from mobileone_q.runs.storage.folder import RunFolder
from mobileone_q.runs.storage.integrity import GRAPHS, hashes
from tests.helpers.networks import random_images, random_model, small
from tests.helpers.records import make_manifest, make_report

TRANSFORM = Preprocessing(resize=36, crop=32)

# A stand-in for TensorRT: the "engine" is a matrix, its logits matrix @ input. It reads and writes
# the addresses it is given, which the stand-in for the CUDA runtime took from ordinary memory.
TENSORRT = """
import ctypes
import numpy as np
class Logger: pass
class Context:
    def __init__(self, matrix): self.matrix, self.addresses = matrix, {}
    def set_input_shape(self, name, shape):
        assert name == "input" and tuple(shape) == (1, 3, 32, 32); return True
    def get_tensor_shape(self, name): return (1, len(self.matrix))
    def set_tensor_address(self, name, address): self.addresses[name] = address; return True
    def execute_async_v3(self, stream):
        def at(name, size, kind=ctypes.c_float):
            return np.ctypeslib.as_array((kind * size).from_address(self.addresses[name]))
        size = self.matrix.shape[1]  # of floats (3, 32, 32), or of codes (32, 32, 4) in DLA's layout
        kind = {3072: ctypes.c_float, 4096: ctypes.c_int8}[size]
        at("logits", len(self.matrix))[:] = self.matrix @ at("input", size, kind)
        return True
class Engine:
    def __init__(self, matrix): self.matrix = matrix
    def create_execution_context(self): return Context(self.matrix)
class Runtime:
    def __init__(self, logger): self.engine_host_code_allowed = False
    def deserialize_cuda_engine(self, data):
        if not self.engine_host_code_allowed: return None  # as for an engine of --versionCompatible
        return Engine(np.frombuffer(data, np.float32).reshape(10, -1))
"""
CUDART = """
#include <stdlib.h>
#include <string.h>
int cudaMalloc(void **p, size_t n) { *p = malloc(n); return *p == 0; }
int cudaMemcpy(void *to, const void *from, size_t n, int kind) {
  if (kind != 1 && kind != 2) return 1;
  memcpy(to, from, n);
  return 0;
}
int cudaFree(void *p) { free(p); return 0; }
int cudaDeviceSynchronize(void) { return 0; }
"""


def make_run(folder, target):
    run = RunFolder(folder)
    folder.mkdir()
    fused = fuse_branches(random_model(small()))
    quantized = calibrate(fused, [(random_images(small(), 4).numpy(), None)], Recipe.bare(target=target))
    fused.save(run.fused)
    quantized.save(run.quantized)
    export_onnx(fused, run.onnx("fp32"))
    export_onnx(quantized, run.onnx("int8"))
    manifest = make_manifest(target=target, preprocessing=TRANSFORM, classes=sample.CLASSES)
    run.write_report(make_report(target=target, graphs=hashes(folder, GRAPHS)), manifest)
    run.write_manifest(manifest)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    targets = ("tensorrt", "dla", "dla-qdq", "onnxruntime")
    return {target: make_run(folder / target, target) for target in targets}


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


def write_ppm(path, image):
    height, width, _ = image.shape
    path.write_bytes(b"P6\n# a comment\n%d %d\n255\n" % (width, height) + image.tobytes())


@pytest.mark.parametrize("direct", [False, True], ids=["floats", "DLA's own INT8"])
def test_one_image_with_nothing_but_numpy_and_tensorrt(runs, picture, tmp_path, direct):
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler for the stand-in of the CUDA runtime")
    folder = tmp_path / "bundle"
    options = BuildOptions(dla_core=0, direct_input=True) if direct else BuildOptions()
    write_bundle(runs["dla" if direct else "tensorrt"], folder, "int8", options)
    stand_ins = tmp_path / "stand-ins"
    for name, text in (
        ("tensorrt.py", TENSORRT),
        ("torch.py", "raise ImportError('no torch on this device')"),
        ("mobileone_q.py", "raise ImportError('no mobileone_q on this device')"),
        ("PIL.py", "raise ImportError('no Pillow on this device')"),
    ):
        stand_ins.mkdir(exist_ok=True)
        (stand_ins / name).write_text(text)
    (tmp_path / "cudart.c").write_text(CUDART)
    library = tmp_path / "libcudart.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "cudart.c"], check=True)
    matrix = np.random.default_rng(1).standard_normal((10, 4096 if direct else 3072)).astype(np.float32)
    matrix /= 2000 if direct else 50
    (folder / "model.plan").write_bytes(matrix.tobytes())
    write_ppm(folder / "image.ppm", picture)

    def run(image):
        environment = {**os.environ, "PYTHONPATH": str(stand_ins), "CUDART": str(library)}
        words = [sys.executable, str(folder / "run_image.py"), str(folder / "model.plan"), str(image)]
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)

    done = run(folder / "image.ppm")
    assert done.returncode == 0, done.stderr
    settings = json.loads((folder / "preprocessing.json").read_text())
    logits = matrix @ laid_out(TRANSFORM(Image.fromarray(picture))[None], settings).reshape(-1)
    best = [sample.CLASSES[index] for index in np.argsort(-logits)[:5]]
    assert [line.split("%  ")[1] for line in done.stdout.splitlines()] == best
    share = 100 * np.exp(logits.max()) / np.exp(logits).sum()
    assert float(done.stdout.split()[0]) == pytest.approx(share, abs=1.0)
    Image.fromarray(picture).save(folder / "image.png")
    refused = run(folder / "image.png")
    assert refused.returncode == 1
    assert "convert it to PPM or .npy" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("shape", [(50, 70), (20, 30), (36, 36), (400, 300)])
def test_its_preprocessing_is_ours(shape):
    """Pillow rounds in fixed point and the script in floating point: at most one level apart."""
    image = np.random.default_rng(2).integers(0, 256, (*shape, 3), np.uint8)
    ours = TRANSFORM(Image.fromarray(image))
    theirs = preprocess(image, TRANSFORM.to_dict())[0]
    level = 1 / 255 / min(TRANSFORM.std)
    assert np.abs(ours - theirs).max() < 1.01 * level
    assert (np.abs(ours - theirs) > 0.01 * level).mean() < 0.05


def test_images_it_reads_by_itself(picture, tmp_path):
    write_ppm(tmp_path / "a.ppm", picture)
    np.save(tmp_path / "a.npy", picture)
    Image.fromarray(picture).save(tmp_path / "a.png")
    for suffix in ("ppm", "npy", "png"):
        assert (read_image(tmp_path / f"a.{suffix}") == picture).all()


def test_what_is_in_it(runs, tmp_path):
    folder = tmp_path / "bundle"
    text = write_bundle(runs["tensorrt"], folder, "int8", BuildOptions(float_precision="fp16"))
    assert "./build.sh" in text
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "int8.onnx", "int8-fp16.onnx", "build.sh", "run_image.py", "score.py", "record.py",
        "preprocessing.json", "labels.txt", "promise.json",
    }  # fmt: skip
    settings = json.loads((folder / "preprocessing.json").read_text())
    assert (settings["resize"], settings["crop"], settings["layout"]) == (36, 32, "NCHW")
    assert settings["mean"] == list(TRANSFORM.mean)
    assert (folder / "labels.txt").read_text().splitlines() == list(sample.CLASSES)
    with pytest.raises(RunError, match="is not empty"):
        write_bundle(runs["tensorrt"], folder, "int8", BuildOptions())


OPTIONS = json.loads((Path(__file__).parents[2] / "helpers" / "trtexec_options.json").read_text())
RELEASES = {"8.5.2.2": "8.5", "8.6.1": "8.6", "10.3.0": "10.3", "10.7.0": "10.7", "10.16.1": "10.16"}
STAND_IN = """#!/bin/sh
echo trtexec "$@"
for word in "$@"; do
  case " {known} " in *" ${{word%%=*}} "*) ;; *) echo "unknown option $word" >&2; exit 2 ;; esac
done
"""


def build_line(folder, tmp_path, version):
    """What build.sh runs on a device with that TensorRT: a trtexec that knows that version's options.

    They are the names in samples/common/sampleOptions.cpp of NVIDIA/TensorRT, by release. Those of 11.4 are
    not published yet, so 11.1's stand in for them.
    """
    known = OPTIONS[RELEASES.get(version, "10.13" if version.startswith("10.") else "11.1")]
    trtexec = tmp_path / "trtexec"
    trtexec.write_text(STAND_IN.format(known=known))
    trtexec.chmod(0o755)
    environment = {**os.environ, "TENSORRT_VERSION": version, "TRTEXEC": str(trtexec)}
    return subprocess.run(
        ["sh", folder / "build.sh"], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("version", [*RELEASES, "10.13.3", "11.1.0", "11.4.1"])
def test_each_version_has_every_option_that_it_is_given(runs, tmp_path, version, precision):
    folder = tmp_path / "bundle"
    options = BuildOptions(optimization_level=4, version_compatible=True, hardware_compatible=True)
    write_bundle(runs["tensorrt"], folder, precision, options)
    done = build_line(folder, tmp_path, version)
    assert done.returncode == 0, done.stderr
    timed = {"--useCudaGraph", "--noDataTransfers", "--useSpinWait"}
    assert (timed <= set(done.stdout.split())) == (not version.startswith("11"))  # 11 always does so


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_readme_names_files_that_are_there(runs, tmp_path, precision):
    folder = tmp_path / "s0 bundle"
    write_bundle(runs["tensorrt"], folder, precision, BuildOptions())
    text = (folder / "README.md").read_text()
    assert text.startswith(f"# MobileOne s0 in {precision.upper()} for TensorRT\n")
    for name in re.findall(r"(?:python3 |\./)(\w+\.\w+)", text):
        assert (folder / name).is_file(), name
    assert {"./build.sh", "run_image.py", "score.py"} <= set(re.findall(r"\./build\.sh|\w+\.py", text))
    assert "batches of 1 to 8" in text
    assert "reference.npz" not in text
    assert ("still compute a layer in floating point" in text) == (precision == "int8")
    assert not re.search(r"[{}]|None|nan", text)
    assert "cd 's0 bundle'\n" in text


def test_a_class_name_is_one_line_whatever_it_holds():
    """A run folder of a stranger may name a class `a, newline, b`: all classes after it would move."""
    manifest = make_manifest(classes=("a\nb", "c\u2028d", "\x1b[2J"))
    assert labels(manifest, 3) == ["a\\nb", "c\\u2028d", "\\x1b[2J"]
    assert labels(manifest, 2) == ["class 0", "class 1"]


@pytest.mark.parametrize("version", ["10", "none", "x.1"])
def test_a_version_that_is_none_ends_the_script(runs, tmp_path, version):
    """`cut` gave all of `10` as its second and third number, which made it 10.10.10."""
    write_bundle(runs["tensorrt"], tmp_path / "bundle", "int8", BuildOptions())
    done = build_line(tmp_path / "bundle", tmp_path, version)
    assert done.returncode == 1
    assert "set TENSORRT_VERSION=10.3.0" in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_trtexec_the_script_says_so(runs, tmp_path):
    folder = tmp_path / "bundle"
    write_bundle(runs["tensorrt"], folder, "int8", BuildOptions())
    environment = {**os.environ, "TENSORRT_VERSION": "10.3.0", "TRTEXEC": "/nowhere"}
    done = subprocess.run(
        ["sh", folder / "build.sh"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "there is no trtexec; set TRTEXEC" in done.stderr


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("8.5.2.2", "--onnx=int8.onnx --int8 --fp16"),
        ("8.6.1", "--onnx=int8.onnx --int8 --fp16"),
        ("10.3.0", "--onnx=int8-fp16.onnx --stronglyTyped"),
        ("10.16.1", "--onnx=int8-fp16.onnx --stronglyTyped"),
        ("11.4.1", "--onnx=int8-fp16.onnx"),
    ],
)
def test_the_build_script_picks_its_line_by_version(runs, tmp_path, version, words):
    folder = tmp_path / "bundle"
    write_bundle(runs["tensorrt"], folder, "int8", BuildOptions(float_precision="fp16"))
    line = build_line(folder, tmp_path, version).stdout.split()
    assert line[0] == "trtexec"
    assert set(words.split()) <= set(line)
    if not version.startswith("8"):
        assert "--int8" not in line


@pytest.mark.parametrize(("version", "number"), [("8.5.2.2", 8502), ("10.3.0", 100300)])
def test_a_bundle_for_dla_brings_its_cache(runs, tmp_path, version, number):
    folder = tmp_path / "bundle"
    write_bundle(runs["dla"], folder, "int8", BuildOptions(dla_core=0))
    done = build_line(folder, tmp_path, version)
    assert done.returncode == 0, done.stderr
    line = done.stdout.split()
    assert "--useCudaGraph" not in line  # trtexec has no CUDA graphs with DLA
    assert {"--precisionConstraints=prefer", "--memPoolSize=workspace:1024,dlaSRAM:1"} <= set(line)
    assert {"--calib=model.calib", "--useDLACore=0", "--minShapes=input:1x3x32x32"} <= set(line)
    assert "--maxShapes=input:1x3x32x32" in line  # a DLA takes no range of batch sizes
    first, rest = (folder / "model.calib").read_text().split("\n", 1)
    assert first == f"TRT-{number}-EntropyCalibration2"
    assert rest == runs["dla"].calibration_cache.read_text().split("\n", 1)[1]
    for other, reason in (
        ("10.8.0", "TensorRT 10.8.0 has no DLA"),
        ("10.16.1", "has no DLA"),
        ("11.4.0", "has no DLA"),
        ("11.4.1", "needs a bundle calibrated with --target dla-qdq"),
    ):
        refused = build_line(folder, tmp_path, other)
        assert refused.returncode == 1
        assert reason in refused.stderr
        assert "trtexec" not in refused.stdout


def test_dla_may_take_int8_in_its_own_layout(runs, tmp_path):
    folder = tmp_path / "bundle"
    write_bundle(runs["dla"], folder, "int8", BuildOptions(dla_core=0, direct_input=True))
    for version in ("8.5.2.2", "10.7.0"):
        done = build_line(folder, tmp_path, version)
        assert "--inputIOFormats=int8:dla_hwc4" in done.stdout.split(), done.stderr
    settings = json.loads((folder / "preprocessing.json").read_text())
    scale = settings["dla_scale"]
    assert scale == read_cache(runs["dla"].calibration_cache).scales["input"]
    x = (np.arange(-200, 200, dtype=np.float32)[:, None] * scale * [1, 0.5, -1]).astype(np.float32)
    x = np.resize(x.T, (1, 3, 20, 16)).astype(np.float32)
    laid = laid_out(x, settings)
    assert (laid.dtype, laid.shape) == (np.int8, (1, 20, 16, 4))
    for channel, row, column in ((0, 0, 3), (1, 7, 0), (2, 19, 15)):  # NvInferRuntimeBase.h: [n][h][w][c]
        code = round(
            float(x[0, channel, row, column]) / scale
        )  # Python rounds ties to even, as TensorRT does
        address = (row * 16 + column) * 4 + channel
        assert laid.reshape(-1)[address] == min(127, max(-128, code))
    assert not laid[..., 3].any()
    assert {-128, 127} <= set(laid.reshape(-1).tolist())
    plain = {key: value for key, value in settings.items() if key != "dla_scale"}
    assert laid_out(x, plain) is x


def test_where_no_int8_can_be_taken_directly(runs, tmp_path):
    for target, precision, options in (
        ("tensorrt", "int8", BuildOptions(direct_input=True)),
        ("dla-qdq", "int8", BuildOptions(dla_core=0, direct_input=True)),
        ("dla", "fp16", BuildOptions(dla_core=0, direct_input=True)),
    ):
        with pytest.raises(EngineError, match="--direct-input needs the input's scale apart from the graph"):
            write_bundle(runs[target], tmp_path / "a", precision, options)
    assert not (tmp_path / "a").exists()
    odd = SimpleNamespace(in_channels=5, image_size=(32, 40))
    with pytest.raises(EngineError, match=r"not 5, and .* multiple of 16, not 40"):
        dla_input_scale(odd, InputForm(), BuildOptions(calibration_cache="x"))
    pixels = BuildOptions(dla_core=0, direct_input=True, input="uint8")
    with pytest.raises(EngineError, match="--direct-input and uint8 pixels are two ways"):
        write_bundle(runs["dla"], tmp_path / "a", "int8", pixels)
    with pytest.raises(EngineError, match="--direct-input is for a bundle"):
        next(build_engines(runs["dla"], backend("onnxruntime"), ["int8"], BuildOptions(direct_input=True)))
    with pytest.raises(EngineError, match="--direct-input is for a bundle"):
        write_triton(runs["dla"], tmp_path / "b", "int8", BuildOptions(dla_core=0, direct_input=True))
    assert not (tmp_path / "b").exists()


def test_a_bundle_with_q_dq_for_dla(runs, tmp_path):
    folder = tmp_path / "bundle"
    write_bundle(runs["dla-qdq"], folder, "int8", BuildOptions(dla_core=0))
    assert not (folder / "int8.calib").exists()
    line = build_line(folder, tmp_path, "11.4.1").stdout.split()
    assert {
        "--onnx=int8.onnx",
        "--useDLACore=0",
        "--uint8AsymmetricQuantizationDLA",
        "--adjustForDLA",
    } <= set(line)
    for other, reason in (
        ("10.3.0", "needs a bundle calibrated with --target dla"),
        ("11.4.0", "has no DLA"),
    ):
        refused = build_line(folder, tmp_path, other)
        assert refused.returncode == 1
        assert reason in refused.stderr


def test_grids_and_device_must_fit(runs, tmp_path):
    with pytest.raises(EngineError, match="is for target tensorrt, not DLA"):
        write_bundle(runs["tensorrt"], tmp_path / "a", "int8", BuildOptions(dla_core=0))
    with pytest.raises(EngineError, match="is for DLA; pass --dla 0"):
        write_bundle(runs["dla"], tmp_path / "b", "int8", BuildOptions())
    with pytest.raises(EngineError, match=r"would read its uint8 codes as int8.*--target tensorrt"):
        write_bundle(runs["onnxruntime"], tmp_path / "c", "int8", BuildOptions())
    assert not any((tmp_path / name).exists() for name in "abc")
    write_bundle(runs["onnxruntime"], tmp_path / "d", "fp16", BuildOptions())


@pytest.mark.parametrize("is_there", [False, True])
def test_a_failure_leaves_the_folder_as_it_was(runs, tmp_path, is_there):
    run = RunFolder(shutil.copytree(runs["tensorrt"].path, tmp_path / "run"))
    run.onnx("int8").unlink()
    folder = tmp_path / "bundle"
    if is_there:
        folder.mkdir()
    with pytest.raises(RunError, match=r"int8\.onnx is missing; make the run again"):
        write_bundle(run, folder, "int8", BuildOptions())
    assert folder.exists() == is_there
    assert not is_there or not any(folder.iterdir())


def test_the_script_is_python_3_8():
    """JetPack 5 has Python 3.8; annotations are never evaluated there."""
    import ast

    source = Path(sample.__file__).parents[2] / "deploy" / "run_image.py"
    tree = ast.parse(source.read_text(), feature_version=(3, 8))
    imported = {
        name.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for name in node.names
    }
    assert imported == {"ctypes", "json", "os", "re", "sys", "numpy", "tensorrt"}
