"""A deployment folder: what a device with TensorRT and NumPy needs, and nothing of this project.

MODEL.onnx   the graph; beside it MODEL.calib for DLA, and a second graph where the typing of
             TensorRT 10 and later needs one
build.sh     builds model.plan with trtexec, by the version of TensorRT it finds
run_image.py classifies one image; preprocessing.json and labels.txt are its settings
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from mobileone_q.architecture.spec import Architecture
from mobileone_q.data import sample
from mobileone_q.deploy import run_image
from mobileone_q.engines import BuildOptions
from mobileone_q.engines.tensorrt.trtexec import STRONG_SINCE, trtexec_line
from mobileone_q.errors import RunError
from mobileone_q.files import write_json, write_text
from mobileone_q.models.fused import FusedModel
from mobileone_q.names import Precision
from mobileone_q.runs.folder import Run
from mobileone_q.runs.graphs import build_options, write_graph

ENGINE = "model.plan"
VERSIONS = ("8.5", "8.6", "10.3", "11.1")  # one line for each; the next lower one serves what lies between

SCRIPT = """#!/bin/sh
# Build {engine} on this device with the TensorRT that it has. Written by mobileone-q.
set -eu
cd "$(dirname "$0")"
VERSION=${{TENSORRT_VERSION:-$(python3 -c 'import tensorrt; print(tensorrt.__version__)')}}
MAJOR=$(echo "$VERSION" | cut -d. -f1)
MINOR=$(echo "$VERSION" | cut -d. -f2)
PATCH=$(echo "$VERSION" | cut -d. -f3)
{calibration}case "$MAJOR.$MINOR" in
  8.5) {v8_5} ;;
  8.*) {v8_6} ;;
  10.*) {v10_3} ;;
  *) {v11_1} ;;
esac
"""
CALIBRATION = """# TensorRT calibrates anew where a cache's first line is not its own version.
if [ "$MAJOR" -ge 10 ]; then
  NUMBER=$((MAJOR * 10000 + MINOR * 100 + PATCH))
else
  NUMBER=$((MAJOR * 1000 + MINOR * 100 + PATCH))
fi
sed "1s/.*/TRT-$NUMBER-EntropyCalibration2/" int8.calib > model.calib
"""


def write_bundle(run: Run, folder: Path, precision: Precision, options: BuildOptions) -> str:
    """Fill a new or empty folder for one precision; returns what to do with it, in words.

    Raises:
        RunError: the folder already holds something, or cannot be written to.
        EngineError: INT8, and a DLA core asked for that the run was not calibrated for.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is not empty; choose another --bundle, so that nothing in it is lost")
    options = build_options(run, precision, options)
    arch = FusedModel.load(run.fused).arch
    lines = {}
    for version in VERSIONS:
        typed = int(version.split(".")[0]) >= STRONG_SINCE
        graph = write_graph(run, precision, options.float_precision, "tensorrt", typed)
        _copy(graph, folder / graph.name)
        lines[version] = _line(version, graph.name, options, arch)
    if options.calibration_cache:
        _copy(Path(options.calibration_cache), folder / "int8.calib")
    calibration = CALIBRATION if options.calibration_cache else ""
    named = {f"v{version.replace('.', '_')}": line for version, line in lines.items()}
    write_text(folder / "build.sh", SCRIPT.format(engine=ENGINE, calibration=calibration, **named))
    (folder / "build.sh").chmod(0o755)
    _copy(Path(run_image.__file__), folder / "run_image.py")
    transform = run.read_manifest()["preprocessing"]
    facts = {"layout": "NCHW", "channels": "RGB", "range": [0, 1], "dtype": "float32"}
    write_json(folder / "preprocessing.json", {**transform, **facts, "input": "input", "output": "logits"})
    write_text(folder / "labels.txt", "\n".join(labels(run, arch.num_classes)) + "\n")
    return f"{folder}: copy it to the device, then ./build.sh and python3 run_image.py {ENGINE} IMAGE"


def labels(run: Run, count: int) -> list[str]:
    """Class names, one per output; numbers where the run does not know them."""
    if run.read_report().get("model") == sample.NAME:
        return list(sample.CLASSES)
    return [f"class {index}" for index in range(count)]


def _line(version: str, graph: str, options: BuildOptions, arch: Architecture) -> str:
    if options.calibration_cache:
        if version == "11.1":
            return "echo 'TensorRT 11 has no INT8 for DLA; use JetPack 5 or 6' >&2; exit 1"
        options = replace(options, calibration_cache="model.calib")
    image = (arch.in_channels, *arch.image_size)
    return trtexec_line(version, graph, ENGINE, options, image)


def _copy(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror}; choose another --bundle") from error
