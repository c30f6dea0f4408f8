"""A deployment folder: what a device with TensorRT and NumPy needs, without this project.

MODEL.onnx    the graph; beside it int8.calib for DLA, and a second graph where the typing of
              TensorRT 10 and later needs one
README.md     how to copy, build, run and score, and what is not proven
build.sh      builds model.plan with trtexec, by the version of TensorRT that it finds
              of a run with two INT8 graphs it times both and keeps the better
record.py     notes the device's power mode, clocks and power while build.sh times the engine
run_image.py  runs one image, or one array for a network that takes arrays; its settings are
              preprocessing.json and labels.txt
score.py      measures the engine on a labelled folder and compares with promise.json, and with
              reference.npz where the bundle has it
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mobileone_q.architecture.spec import Architecture
from mobileone_q.deploy import run_image
from mobileone_q.engines import BuildOptions
from mobileone_q.engines.tensorrt.calibration_cache import read_cache
from mobileone_q.engines.tensorrt.trtexec import STRONG_SINCE
from mobileone_q.errors import EngineError, FileError, printable
from mobileone_q.files import write_json, write_text
from mobileone_q.input_form import InputForm
from mobileone_q.names import ActivationGrids, Precision
from mobileone_q.report.schema import Manifest
from mobileone_q.runs.bundles.build_script import ENGINE, VERSIONS, build_script
from mobileone_q.runs.bundles.graph_choice import recorded_costs
from mobileone_q.runs.bundles.promise import write_promise, write_reference
from mobileone_q.runs.bundles.readme import readme
from mobileone_q.runs.engines.graphs import build_options, input_form, refuse_foreign_target, write_graph
from mobileone_q.runs.storage.folder import RunFolder
from mobileone_q.runs.storage.staging import new_folder


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
        EngineError: TensorRT cannot run the run's INT8 graph, or cannot do so as was asked for.
        DataError: ``reference`` cannot be used.
        FileError: the run's manifest cannot be used, or the folder cannot be written to.
    """
    manifest, arch = run.read_manifest(), run.load_fused().arch
    if precision == "int8":
        refuse_foreign_target(run, "tensorrt", options.dla_core)
    options = build_options(run, precision, options)
    form = input_form(run, options)
    facts = input_facts(manifest, arch, form)
    if options.direct_input:
        facts["dla_scale"] = dla_input_scale(arch, form, options)
    with new_folder(folder, folder.name) as place:
        _fill(run, manifest, arch, place.path, precision, options)
        write_json(place.path / "preprocessing.json", facts)
        two = _has_two(run, precision, options)
        write_promise(run, manifest, precision, place.path, two)
        if reference is not None:
            write_reference(run, manifest, arch, precision, reference, place.path, two)
        text = readme(run.read_report(), manifest, options, folder.name, reference is not None)
        write_text(place.path / "README.md", text)
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
    every: list[ActivationGrids] = list(costs) or ["saturating"]
    graphs: dict[str, dict[ActivationGrids, str]] = {}
    form = input_form(run, options)
    image = form.shape(arch.in_channels, arch.image_size)
    for version in VERSIONS:
        typed = int(version.split(".")[0]) >= STRONG_SINCE
        for grids in every:
            graph = write_graph(run, precision, options.float_precision, "tensorrt", typed, grids, form=form)
            copy_file(graph, folder / graph.name)
            graphs.setdefault(version, {})[grids] = graph.name
    if options.calibration_cache:
        copy_file(Path(options.calibration_cache), folder / "int8.calib")
    write_text(folder / "build.sh", build_script(graphs, options, image, costs, manifest.max_kl))
    (folder / "build.sh").chmod(0o755)
    for name in ("run_image.py", "score.py", "record.py"):
        copy_file(Path(run_image.__file__).with_name(name), folder / name)
    write_text(folder / "labels.txt", "\n".join(labels(manifest, arch.num_classes)) + "\n")


def dla_input_scale(arch: Architecture, form: InputForm, options: BuildOptions) -> float:
    """The real value of one step of an INT8 input in DLA's layout for images, [N][H][W][4].

    Raises:
        EngineError: the engine cannot take that.
    """
    if form.is_pixels:
        raise EngineError("--direct-input and uint8 pixels are two ways to feed an engine; choose one")
    if options.calibration_cache is None:
        raise EngineError(
            "--direct-input needs the input's scale apart from the graph, as --target dla has it: calibrate "
            "for that and pass --int8 --dla 0, or leave it out"
        )
    if arch.in_channels not in (3, 4) or arch.image_size[1] % 16:
        raise EngineError(
            f"--direct-input needs 3 or 4 channels, not {arch.in_channels}, and a width that is a multiple "
            f"of 16, not {arch.image_size[1]}; leave it out"
        )
    return read_cache(Path(options.calibration_cache)).scales["input"]


def input_facts(manifest: Manifest, arch: Architecture, form: InputForm | None = None) -> dict[str, Any]:
    """The network's input, for people and for run_image.py: ``takes`` is ``image`` or ``array``.

    ``form`` is the graph's, by default the run's.
    """
    form = form or manifest.input
    tensors = {"input": "input", "output": "logits"}
    if manifest.preprocessing is None:
        shape = [arch.in_channels, *arch.image_size]
        meaning = "normalized as the arrays that the network was calibrated on"
        return {"takes": "array", "shape": shape, "dtype": "float32", "values": meaning, **tensors}
    facts: dict[str, Any] = {"layout": "NCHW", "channels": "RGB", "range": [0, 1], "dtype": "float32"}
    if form.is_pixels:
        facts = {"range": [0, 255], **form.to_dict()}
    return {"takes": "image", **manifest.preprocessing.to_dict(), **facts, **tensors}


def labels(manifest: Manifest, count: int) -> list[str]:
    """A name for each of ``count`` outputs, each of one line; numbers where the run has no names for them."""
    names = manifest.classes
    if names is not None and len(names) == count:
        return [printable(name) for name in names]
    return [f"class {index}" for index in range(count)]


def _has_two(run: RunFolder, precision: Precision, options: BuildOptions) -> bool:
    return precision == "int8" and options.dla_core is None and run.has_plain_grids()


def copy_file(source: Path, target: Path) -> None:
    """Copy a file into a folder that is made where it is missing.

    Raises:
        FileError: the copy cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        raise FileError(f"cannot write {target}: {error.strerror}; choose another folder") from error
