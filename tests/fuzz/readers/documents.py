"""Readers of JSON: reports, manifests, recordings and what a recording names."""

from __future__ import annotations

import json
from pathlib import Path

from mobileone_q.evaluation.recorded_profile import latency_from
from mobileone_q.files import read_json
from mobileone_q.report.html import write_html
from mobileone_q.report.schema import Manifest, Report
from mobileone_q.report.terminal import print_latency, print_parity, print_report
from mobileone_q.runs.bundles.bundle import input_facts, labels
from tests.fuzz.harness import Harness
from tests.helpers.cli import BLOCKS
from tests.helpers.mutations import damaged, json_bytes, json_edited, json_resealed
from tests.helpers.networks import small
from tests.helpers.records import make_manifest, make_report

PROFILE = [{"count": 5}, *({"name": name, "medianMs": 1.0, "averageMs": 1.0} for name in BLOCKS[:3])]
LAYERS = {
    "Layers": [
        {
            "Name": "stem", "LayerType": "CaskConvolution", "ParameterType": "Convolution", "Groups": 1,
            "Inputs": [{"Name": "input", "Format/Datatype": "Channel major FP32 format"}],
            "Outputs": [{"Name": "a", "Format/Datatype": "Four wide channel vectorized Int8 format"}],
            "Metadata": "",
        },
        {"Name": "Reformat 1", "LayerType": "Reformat", "Outputs": [], "Metadata": "[ONNX Layer: stem]"},
    ],
    "Bindings": ["input"],
}  # fmt: skip
NEWER_LAYERS = {"Layers": LAYERS["Layers"], "I/O Tensors": [{"Name": "input"}, {"Name": "logits"}]}
ENGINE = {
    "version": "10.3.0", "profile": PROFILE, "layers": LAYERS, "latency_ms": {"median": 3.0, "p95": 4.0},
}  # fmt: skip
STATE = {
    "power_mode": "MAXN", "clocks_mhz": {"gpu": 918.0}, "power_w": {"VDD_IN": {"mean": 5.0, "max": 6.0}},
    "samples": 30,
}  # fmt: skip
RECORDING = {
    "arch": "s0", "device": "Jetson", "batch": 1, "engines": {"fp32": ENGINE, "fp16": ENGINE, "int8": ENGINE},
    "state": STATE,
}  # fmt: skip
DEEP = (
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"9" * 5000,
    b"\xff\xfe{}",
    b"null",
    b"1",
    b'""',
    b"{}",
    b"[]",
    b"",
)


def saved(document, folder: Path) -> list[bytes]:
    document.save(folder / "x.json")
    return [(folder / "x.json").read_bytes()]


def use_report(folder: Path, content: bytes) -> None:
    """Load a report and do all that commands do with one."""
    (folder / "report.json").write_bytes(content)
    report = Report.load(folder / "report.json")
    print_report(report)
    if report.parity is not None:
        print_parity(report.parity)
    write_html(report, folder / "report.html")
    report.save(folder / "again.json")


def use_manifest(folder: Path, content: bytes) -> None:
    """Load a manifest and do what `build-engine --bundle` does with one."""
    (folder / "manifest.json").write_bytes(content)
    manifest = Manifest.load(folder / "manifest.json")
    labels(manifest, 10)
    input_facts(manifest, small())
    manifest.save(folder / "again.json")


def recording_in(folder: Path, content: bytes) -> list[object]:
    (folder / "a.json").write_bytes(content)
    return ["profile", "--from", folder / "a.json"]


def use_recording(folder: Path, content: bytes) -> None:
    recording_in(folder, content)
    print_latency(latency_from(folder / "a.json"))


def beside_recording(key: str):
    """A user of the file that every engine of a recording names under ``key``."""

    def words(folder: Path, content: bytes) -> list[object]:
        engine = ENGINE | {key: f"{key}.json"}
        (folder / f"{key}.json").write_bytes(content)
        return recording_in(folder, json_bytes(RECORDING | {"engines": {"fp32": engine, "int8": engine}}))

    def use(folder: Path, content: bytes) -> None:
        words(folder, content)
        print_latency(latency_from(folder / "a.json"))

    return {"use": use, "words": words}


def use_json(folder: Path, content: bytes) -> None:
    (folder / "x.json").write_bytes(content)
    read_json(folder / "x.json")


def linked_recordings() -> tuple[bytes, ...]:
    """Recordings that name files which are not theirs."""
    names = ("/etc/passwd", "../x.json", "profile.json/..", ".", "", "\0", "x" * 5000, "a.json")
    return tuple(
        json_bytes(RECORDING | {"engines": {"fp32": ENGINE | {"profile": name}, "int8": ENGINE}})
        for name in names
    )


AGAIN = "mobileone-q calibrate"
HARNESSES = (
    Harness(
        "report",
        lambda folder: saved(make_report(), folder),
        use_report,
        (damaged, json_edited, json_resealed, json_resealed),
        DEEP,
        says=("{folder}/report.json", AGAIN),
    ),
    Harness(
        "manifest",
        lambda folder: saved(make_manifest(), folder),
        use_manifest,
        (damaged, json_edited, json_resealed, json_resealed),
        DEEP,
        says=("{folder}/manifest.json", AGAIN),
    ),
    Harness(
        "recording",
        lambda _: [json_bytes(RECORDING)],
        use_recording,
        (damaged, json_edited, json_edited),
        (*DEEP, *linked_recordings()),
        says=("{folder}",),
        words=recording_in,
        weight=0.6,
    ),
    Harness(
        "inspector",
        lambda _: [json_bytes(LAYERS), json_bytes(NEWER_LAYERS)],
        damages=(damaged, json_edited, json_edited),
        hostile=DEEP,
        weight=0.6,
        **beside_recording("layers"),
    ),
    Harness(
        "trtexec-profile",
        lambda _: [json_bytes(PROFILE)],
        damages=(damaged, json_edited, json_edited),
        hostile=DEEP,
        weight=0.6,
        **beside_recording("profile"),
    ),
    Harness(
        "json",
        lambda _: [json.dumps({"a": [1, None, "ü"], "b": {"c": 1.5}}).encode()],
        use_json,
        hostile=DEEP,
        says=("{folder}/x.json",),
    ),
)
