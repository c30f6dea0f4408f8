"""A deployment folder: what a device with TensorRT and NumPy needs, without this project.

MODEL.onnx    the graph; beside it int8.calib for DLA, and a second graph where the typing of
              TensorRT 10 and later needs one
build.sh      builds model.plan with trtexec, by the version of TensorRT that it finds
              of a run with two INT8 graphs it times both and keeps the better
run_image.py  runs one image, or one array for a network that takes arrays; its settings are
              preprocessing.json and labels.txt
score.py      measures the engine on a labelled folder and compares with promise.json, and with
              reference.npz where the bundle has it
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from mobileone_q.architecture.spec import Architecture
from mobileone_q.deploy import run_image
from mobileone_q.engines import BuildOptions
from mobileone_q.engines.tensorrt.trtexec import STRONG_SINCE, trtexec_line
from mobileone_q.errors import FileError
from mobileone_q.files import write_json, write_text
from mobileone_q.jetpack import NO_DLA, dla_form
from mobileone_q.names import Precision
from mobileone_q.report.schema import Manifest
from mobileone_q.runs.folder import RunFolder
from mobileone_q.runs.graph_choice import choice, functions, recorded_costs
from mobileone_q.runs.graphs import build_options, refuse_foreign_target, write_graph
from mobileone_q.runs.promise import write_promise, write_reference
from mobileone_q.runs.staging import new_folder

ENGINE = "model.plan"
# A line for each version, which also serves those up to the next; DLA comes and goes between them.
VERSIONS = ("8.5", "8.6", "10.3", "10.8", "11.1", "11.4.1")

SCRIPT = """#!/bin/sh
# Build {engine} on this device with the TensorRT that it has. Written by mobileone-q.
set -eu
cd "$(dirname "$0")"
VERSION=${{TENSORRT_VERSION:-$(python3 -c 'import tensorrt; print(tensorrt.__version__)')}}
MAJOR=$(echo "$VERSION" | cut -d. -f1)
MINOR=$(echo "$VERSION" | cut -d. -f2)
PATCH=$(echo "$VERSION" | cut -d. -f3)
NUMBER=$((MAJOR * 10000 + MINOR * 100 + PATCH))
TRTEXEC=${{TRTEXEC:-/usr/src/tensorrt/bin/trtexec}}  # where JetPack puts it; containers have it on PATH
if [ ! -x "$TRTEXEC" ]; then TRTEXEC=$(command -v trtexec || true); fi
if [ -z "$TRTEXEC" ]; then echo "there is no trtexec; set TRTEXEC to its path" >&2; exit 1; fi
{calibration}{branches}
"""
CALIBRATION = """# TensorRT calibrates anew where a cache's first line is not its own version.
HEADER=$NUMBER
if [ "$MAJOR" -lt 10 ]; then HEADER=$((MAJOR * 1000 + MINOR * 100 + PATCH)); fi
sed "1s/.*/TRT-$HEADER-EntropyCalibration2/" int8.calib > model.calib
"""


def write_bundle(
    run: RunFolder,
    folder: Path,
    precision: Precision,
    options: BuildOptions,
    reference: Path | None = None,
) -> str:
    """Fill a new or empty folder for one precision; returns what to do with it, in words.

    The folder appears whole or not at all. ``reference`` is a labelled folder of images whose FP32 logits
    go with it.

    Raises:
        RunError: the folder already holds something, or a file of the run has changed.
        EngineError: TensorRT cannot run the run's INT8 graph, or cannot do so on what was asked for.
        DataError: ``reference`` cannot be used.
        FileError: the run's manifest cannot be used, or the folder cannot be written to.
    """
    manifest, arch = run.read_manifest(), run.load_fused().arch
    if precision == "int8":
        refuse_foreign_target(run, "tensorrt", options.dla_core)
    options = build_options(run, precision, options)
    with new_folder(folder, folder.name) as place:
        _fill(run, manifest, arch, place.path, precision, options)
        two = _has_two(run, precision, options)
        write_promise(run, manifest, precision, place.path, two)
        if reference is not None:
            write_reference(run, manifest, arch, precision, reference, place.path, two)
    given = "IMAGE" if manifest.preprocessing else "ARRAY.npy"
    return f"{folder}: copy it to the device, then ./build.sh and python3 run_image.py {ENGINE} {given}"


def _fill(
    run: RunFolder,
    manifest: Manifest,
    arch: Architecture,
    folder: Path,
    precision: Precision,
    options: BuildOptions,
) -> None:
    costs = recorded_costs(run.read_report(), manifest) if _has_two(run, precision, options) else {}
    engines = {grids: f"{grids}.plan" for grids in costs} or {"saturating": ENGINE}
    lines = {}
    for version in VERSIONS:
        typed = int(version.split(".")[0]) >= STRONG_SINCE
        commands = []
        for grids, engine in engines.items():
            graph = write_graph(run, precision, options.float_precision, "tensorrt", typed, grids)
            _copy(graph, folder / graph.name)
            command = _line(version, graph.name, engine, options, arch)
            commands.append(f"build {grids} {command}" if costs else command)
        lines[version] = "; ".join(commands)
    if options.calibration_cache:
        _copy(Path(options.calibration_cache), folder / "int8.calib")
    calibration = CALIBRATION if options.calibration_cache else ""
    branches = _branches(lines)
    if costs and manifest.max_kl is not None:
        branches = f"{functions(manifest.max_kl)}{branches}{choice(costs, ENGINE)}"
    script = SCRIPT.format(engine=ENGINE, calibration=calibration, branches=branches)
    write_text(folder / "build.sh", script)
    (folder / "build.sh").chmod(0o755)
    for script_path in (Path(run_image.__file__), Path(run_image.__file__).with_name("score.py")):
        _copy(script_path, folder / script_path.name)
    write_json(folder / "preprocessing.json", input_facts(manifest, arch))
    write_text(folder / "labels.txt", "\n".join(labels(manifest, arch.num_classes)) + "\n")


def input_facts(manifest: Manifest, arch: Architecture) -> dict[str, Any]:
    """The network's input, for people and for run_image.py: ``takes`` is ``image`` or ``array``."""
    tensors = {"input": "input", "output": "logits"}
    if manifest.preprocessing is None:
        shape = [arch.in_channels, *arch.image_size]
        meaning = "normalized as the arrays that the network was calibrated on"
        return {"takes": "array", "shape": shape, "dtype": "float32", "values": meaning, **tensors}
    facts = {"layout": "NCHW", "channels": "RGB", "range": [0, 1], "dtype": "float32"}
    return {"takes": "image", **manifest.preprocessing.to_dict(), **facts, **tensors}


def labels(manifest: Manifest, count: int) -> list[str]:
    """A name for each of ``count`` outputs; numbers where the run has no names for them."""
    names = manifest.classes
    if names is not None and len(names) == count:
        return list(names)
    return [f"class {index}" for index in range(count)]


def _branches(lines: dict[str, str]) -> str:
    """The lines as one ``if``: the latest version comes first, and the first serves what is older too."""
    text, word = "", "if"
    for version in reversed(VERSIONS[1:]):
        text += f'{word} [ "$NUMBER" -ge {_number(version)} ]; then\n  {lines[version]}\n'
        word = "elif"
    return f"{text}else\n  {lines[VERSIONS[0]]}\nfi"


def _number(version: str) -> int:
    """A version as one number: 10.3 is 100300."""
    major, minor, patch = (*(int(part) for part in version.split(".")), 0)[:3]
    return major * 10000 + minor * 100 + patch


def _has_two(run: RunFolder, precision: Precision, options: BuildOptions) -> bool:
    return precision == "int8" and options.dla_core is None and run.has_plain_grids()


def _line(version: str, graph: str, engine: str, options: BuildOptions, arch: Architecture) -> str:
    form = dla_form(tuple(int(part) for part in version.split(".")))
    if options.dla_core is not None:
        wanted = "cache" if options.calibration_cache else "qdq"
        if form is None:
            return _refusal(f"TensorRT $VERSION has no DLA. {NO_DLA}")
        if options.precision == "int8" and form != wanted:
            target = "dla" if form == "cache" else "dla-qdq"
            return _refusal(f"DLA in TensorRT $VERSION needs a bundle calibrated with --target {target}")
    if options.calibration_cache:
        options = replace(options, calibration_cache="model.calib")
    image = (arch.in_channels, *arch.image_size)
    return trtexec_line(version, graph, engine, options, image)


def _refusal(reason: str) -> str:
    return f'echo "{reason}" >&2; exit 1'


def _copy(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        raise FileError(f"cannot write {target}: {error.strerror}; choose another --bundle") from error
