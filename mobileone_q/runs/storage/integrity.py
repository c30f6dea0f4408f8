"""The integrity of a run: which bytes each of its files must have, and whether it has them.

The manifest holds the SHA-256 of every file that `calibrate` and `qat` write. A graph that
`build-engine` adds later has a sidecar of its own, ``fp16.onnx.json``, and so does each engine; the
manifest is never written again, so that two commands at once lose nothing. Manifest, report and
sidecars are sealed: each holds a digest of its own fields (:func:`mobileone_q.files.sealed`).

All of it finds damage, mix-ups and edits. It is no protection from somebody who means to deceive:
who can write into a run can also write the hashes anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from mobileone_q.engines import EngineInfo
from mobileone_q.engines.base import sidecar
from mobileone_q.errors import MobileOneQError, RunError
from mobileone_q.files import is_sealed, read_json, sealed, sha256, write_json
from mobileone_q.report.schema import Manifest, Report

FUSED, QUANTIZED = "fused.safetensors", "quantized.safetensors"
GRAPHS = ("fp32.onnx", "int8.onnx")  # those that accuracy is measured on
CALIBRATION_CACHE = "int8.calib"
PLAIN_QUANTIZED, PLAIN_GRAPH = "quantized-plain.safetensors", "int8-plain.onnx"  # of `--grids both`
TUNED = "tuned.yaml"  # of `tune`: its choice
TRIALS = "tuning/trials.jsonl"  # of `tune`: all that it measured
FP16_GRAPH = "fp16.onnx"  # of a backbone; in other runs it is written when an engine needs it
ARTEFACTS = (
    FUSED, QUANTIZED, *GRAPHS, FP16_GRAPH, CALIBRATION_CACHE, PLAIN_QUANTIZED, PLAIN_GRAPH, TUNED, TRIALS,
)  # fmt: skip
# Graphs that are written when an engine needs them: fp16.onnx, int8-fp16.onnx, those of `--keep-float`, and
# any in another form of input than the run's own, such as int8-uint8-bgr-480x640.onnx.
LATER_GRAPH = re.compile(
    r"(fp32|fp16|int8(-plain|-mixed)?(-fp16)?)"
    r"(-(?P<input>float|uint8)(-(?P<order>rgb|bgr)(-(?P<size>\d{1,5}x\d{1,5}))?)?)?\.onnx"
)

State = Literal["ok", "changed", "missing"]


@dataclass(frozen=True)
class Checked:
    """A file of a run by its name in the folder, and how it was found; ``why`` is empty where it is ok."""

    name: str
    state: State
    why: str = ""


def hashes(folder: Path, names: tuple[str, ...] = ARTEFACTS) -> dict[str, str]:
    """The SHA-256 of those of some files that a run's folder has, by name."""
    return {name: sha256(folder / name) for name in names if (folder / name).is_file()}


def record_graph(folder: Path, name: str, manifest: Manifest) -> None:
    """Write the sidecar of a later graph, which has just been exported.

    Raises:
        FileError: the folder cannot be written to.
    """
    facts = {"sha256": sha256(folder / name), "made_from": manifest.artefacts.get(source_of(name))}
    write_json(sidecar(folder / name), sealed(facts))


def source_of(later_graph: str) -> str:
    """The file of weights that a later graph is exported from."""
    if not later_graph.startswith("int8"):
        return FUSED
    return PLAIN_QUANTIZED if later_graph.startswith("int8-plain") else QUANTIZED


def _export_again(later_graph: str) -> str:
    """How to write a later graph again, in words that follow a semicolon."""
    found = LATER_GRAPH.fullmatch(later_graph)
    words = "--fp16" if "fp16" in later_graph else f"--{later_graph[:4]}"
    words += " --keep-float BLOCK" if "-mixed" in later_graph else ""
    if found is not None:
        options = {"input": "input", "order": "channel-order", "size": "camera-size"}
        words += "".join(f" --{flag} {found[key]}" for key, flag in options.items() if found[key])
    return f"write it again with `mobileone-q build-engine {words}`"


def recorded(folder: Path, manifest: Manifest, name: str) -> str:
    """The SHA-256 that a file of a run, other than an engine, must have.

    Raises:
        RunError: nothing is recorded of such a file, or its sidecar is unusable or of other weights.
    """
    if name in manifest.artefacts:
        return manifest.artefacts[name]
    if not LATER_GRAPH.fullmatch(name):
        raise RunError(f"{folder} has no record of a file {name}; {remedy(manifest)}")
    path = sidecar(folder / name)
    if not path.is_file():
        raise RunError(f"{folder / name} has no record of its bytes ({path.name}); {_export_again(name)}")
    facts = read_json(path)
    if not isinstance(facts, dict) or not is_sealed(facts):
        raise RunError(f"{path} has changed since it was written; {_export_again(name)}")
    if facts.get("made_from") != manifest.artefacts.get(source_of(name)):
        raise RunError(f"{folder / name} was made from another {source_of(name)}; {_export_again(name)}")
    return str(facts.get("sha256"))


def verified(folder: Path, manifest: Manifest, name: str) -> Path:
    """The path of a file of a run, whose bytes are those that were written.

    Raises:
        RunError: it is missing, it has changed, or nothing is recorded of it; the message names the
            command that makes it again.
    """
    path, expected = folder / name, recorded(folder, manifest, name)
    again = remedy(manifest) if name in manifest.artefacts else _export_again(name)
    if not path.is_file():
        raise RunError(f"{path} is missing; {again}")
    if sha256(path) != expected:
        raise RunError(f"{path} has changed since the run was made; {again}")
    return path


def check_report(folder: Path, manifest: Manifest, report: Report) -> None:
    """Check that a report's figures are those of the graphs that are there.

    Raises:
        RunError: the report is of other graphs, or a graph has changed.
    """
    expected = {name: manifest.artefacts.get(name) for name in GRAPHS}
    if dict(report.graphs) != expected:
        raise RunError(f"{folder / 'report.json'} is the report of other graphs; {remedy(manifest)}")
    for name in GRAPHS:
        verified(folder, manifest, name)


def check_weights(path: Path, manifest: Manifest) -> None:
    """Check that a checkpoint is still the one that a run was made from; it may be missing.

    Raises:
        RunError: it has other bytes.
    """
    if path.is_file() and sha256(path) != manifest.weights.sha256:
        raise RunError(
            f"{path} has changed since the run was made from it; put the old file back, or {remedy(manifest)}"
        )


def remedy(manifest: Manifest) -> str:
    """How to make a run again, in words that follow a semicolon."""
    if manifest.tuned_from is not None:
        command = "tune" if manifest.qat is None else "qat"
        return f"make the run again with `mobileone-q {command} {manifest.tuned_from}`"
    return f"make the run again with `mobileone-q calibrate --arch {manifest.arch}`"


def check_engine(folder: Path, manifest: Manifest, engine: Path) -> EngineInfo:
    """The sidecar of a run's engine whose file and graph are those that it describes.

    Raises:
        EngineError: the engine or its sidecar is missing or was edited, or it is of another graph.
        RunError: nothing usable is recorded of its graph.
    """
    info = EngineInfo.load(engine)
    info.check_bytes(engine)
    info.check_graph(engine, recorded(folder, manifest, info.onnx), info.onnx)
    return info


def engine_files(folder: Path) -> list[Path]:
    """The engine files of a run, by name, also those of which only the sidecar is there."""
    found = {path for path in (folder / "engines").glob("[!.]*") if path.suffix not in (".json", ".log")}
    found |= {path.with_suffix("") for path in (folder / "engines").glob("[!.]*.json")}
    return sorted(found)


def check_all(folder: Path) -> Iterator[Checked]:
    """Every file of a run of which something is recorded, and how it was found.

    Raises:
        FileError: the manifest cannot be used, so that nothing can be said of the other files.
    """
    manifest = Manifest.load(folder / "manifest.json")
    yield Checked("manifest.json", "ok")
    for name in (*manifest.artefacts, *later_graphs(folder, manifest)):
        yield _checked(folder, name, partial(verified, folder, manifest, name))
    yield _checked(folder, "report.json", partial(_check_report_file, folder, manifest))
    for engine in engine_files(folder):
        yield _checked(folder, f"engines/{engine.name}", partial(check_engine, folder, manifest, engine))


def later_graphs(folder: Path, manifest: Manifest) -> list[str]:
    """The names of the later graphs of a run that are there, or of which only the sidecar is there."""
    names = {path.name.removesuffix(".json") for path in folder.glob("*.onnx*")}
    return sorted(name for name in names - set(manifest.artefacts) if LATER_GRAPH.fullmatch(name))


def is_there(path: Path) -> tuple[bool, bool]:
    """Whether a graph or engine is there, and whether its sidecar is."""
    return path.is_file(), sidecar(path).is_file()


def _check_report_file(folder: Path, manifest: Manifest) -> None:
    check_report(folder, manifest, Report.load(folder / "report.json"))


def _checked(folder: Path, name: str, check: Callable[[], object]) -> Checked:
    try:
        check()
    except MobileOneQError as error:
        return Checked(name, "changed" if (folder / name).is_file() else "missing", str(error))
    return Checked(name, "ok")
