"""run_image.py of a bundle, run as on a device: TensorRT and NumPy, nothing else to import."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobileone_q.data import sample
from mobileone_q.deploy import run_image
from mobileone_q.deploy.run_image import laid_out, preprocess, read_image
from mobileone_q.engines import BuildOptions
from mobileone_q.runs.bundles.bundle import write_bundle
from tests.helpers.bundles import TRANSFORM

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


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


def write_ppm(path, image):
    height, width, _ = image.shape
    path.write_bytes(b"P6\n# a comment\n%d %d\n255\n" % (width, height) + image.tobytes())


@pytest.mark.parametrize("direct", [False, True], ids=["floats", "DLA's own INT8"])
def test_one_image_with_nothing_but_numpy_and_tensorrt(small_run_for, picture, tmp_path, direct):
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler for the stand-in of the CUDA runtime")
    folder = tmp_path / "bundle"
    options = BuildOptions(dla_core=0, direct_input=True) if direct else BuildOptions()
    write_bundle(small_run_for("dla" if direct else "tensorrt"), folder, "int8", options)
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


def test_the_script_is_python_3_8():
    """JetPack 5 has Python 3.8; annotations are never evaluated there."""
    tree = ast.parse(Path(run_image.__file__).read_text(), feature_version=(3, 8))
    imported = {
        name.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for name in node.names
    }
    assert imported == {"ctypes", "json", "os", "re", "sys", "numpy", "tensorrt"}
