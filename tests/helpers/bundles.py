"""Runs of a small network for each target, and build.sh of a bundle with a stand-in for trtexec."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.data import sample
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.export.graph import export_onnx
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.names import Target
from mobileone_q.runs.storage.folder import RunFolder
from mobileone_q.runs.storage.integrity import GRAPHS, hashes
from tests.helpers.networks import random_images, random_model, small
from tests.helpers.records import make_manifest, make_report

TRANSFORM = Preprocessing(resize=36, crop=32)
OPTIONS = json.loads(Path(__file__).with_name("trtexec_options.json").read_text())
RELEASES = {"8.5.2.2": "8.5", "8.6.1": "8.6", "10.3.0": "10.3", "10.7.0": "10.7", "10.16.1": "10.16"}
STAND_IN = """#!/bin/sh
echo trtexec "$@"
for word in "$@"; do
  case " {known} " in *" ${{word%%=*}} "*) ;; *) echo "unknown option $word" >&2; exit 2 ;; esac
done
"""


def small_run(folder: Path, target: Target) -> RunFolder:
    """Make a run of a small network with random weights, calibrated for a target."""
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


def build_line(folder: Path, tmp_path: Path, version: str) -> subprocess.CompletedProcess[str]:
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
