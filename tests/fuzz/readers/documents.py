"""Readers of JSON: reports, manifests, recordings and what a recording names."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from random import Random

from calibrate.precision_search import Ratio
from mobileone_q.evaluation.device_score import read_score
from mobileone_q.evaluation.recorded_profile import latency_from
from mobileone_q.files import DIGEST, read_json, sealed
from mobileone_q.report.html import write_html
from mobileone_q.report.latency import print_latency
from mobileone_q.report.schema import Manifest, Report
from mobileone_q.report.terminal import print_parity, print_report
from mobileone_q.runs.bundles.bundle import input_facts, labels
from mobileone_q.runs.reports.issue_report import write_issue_report
from mobileone_q.runs.tuning.log import RecordedRaces, TuningLog, candidate_of
from tests.fuzz.harness import Harness, command
from tests.helpers.cli import BLOCKS
from tests.helpers.mutations import damaged, edited, json_bytes, json_edited, json_resealed
from tests.helpers.networks import small
from tests.helpers.records import make_manifest, make_report
from tests.helpers.structures import TEXT

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
SCORE = {
    "schema": 1, "arch": "s0", "device": "Jetson", "batch": 1, "keep_float": [],
    "score": {
        "verdict": "kept", "reason": "agreement 98 %", "grids": "saturating", "precision": "int8",
        "graph_sha256": "0" * 64, "engine_sha256": "1" * 64, "runtime": "tensorrt 10.3", "images": 30,
        "skipped": 0, "labelled": 30, "compared": 30, "top1": 0.9, "promised_top1": 0.91,
        "agreement": 0.98, "kl": 0.01,
        "expected": {"agreement": 0.97, "kl": 0.02}, "state": STATE,
    },
    "engines": {"int8": ENGINE},
}  # fmt: skip
LOG = (
    {
        "kind": "start", "settings": {"graph": "0" * 64, "threads": 1, "limit": None}, "start_ms": 1.5,
        "start_costs": {"saturating": 0.01}, "sensitivities": {"stem": 0.1, "head": -0.0},
        "block_ms": {"stem": [1.0, 0.5], "head": [1.0, 2.0]},
    },
    {
        "kind": "candidate", "keep_float": ["stem"], "activation_grids": "saturating", "why": "model",
        "against": {"keep_float": [], "activation_grids": "saturating"}, "ratio": 0.9, "deviation": 0.01,
        "predicted_ms": 1.4, "latency_ms": 1.35, "modelled_cost": None, "is_best": True, "seconds": 1.0,
    },
    {
        "kind": "final", "candidates": [{"keep_float": [], "activation_grids": "saturating"}],
        "timings": [[1.5, 1.6]], "seconds": 2.0,
    },
    {
        "kind": "result", "candidate": {"keep_float": ["stem"], "activation_grids": "saturating"},
        "timings": [[2.0, 2.1], [1.5, 1.6], [1.4, 1.5]], "seconds": 3.0,
    },
)  # fmt: skip
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


def score_in(folder: Path, content: bytes) -> list[object]:
    (folder / "score.json").write_bytes(content)
    return ["profile", "--from", folder / "score.json"]


def use_score(folder: Path, content: bytes) -> None:
    """What `profile --from` and the report do with a bundle's score."""
    words = score_in(folder, content)
    command(*words)
    score = read_score(folder / "score.json")
    if score is not None:
        report = make_report().model_copy(update={"device": score})
        print_report(report)
        write_html(report, folder / "report.html")


def lines(values: Iterable[object]) -> bytes:
    """A log of `tune`, each line sealed where it is one."""
    text, last = b"", ""
    for value in values:
        if isinstance(value, dict):
            value = sealed(value | {"after": last})
            last = value[DIGEST]
        text += json_bytes(value) + b"\n"
    return text


def line_edited(random: Random, data: bytes) -> bytes:
    """A log with a value changed in one of its lines."""
    values = [json.loads(line) for line in data.splitlines()]
    place = random.randrange(len(values))
    return lines([*values[:place], edited(random, values[place]), *values[place + 1 :]])


def fit_in(folder: Path, content: bytes) -> list[object]:
    (folder / "a.json").write_bytes(content)
    return ["roofline", "--device", "orin-nano", "--arch", "s0", "--fit", folder / "a.json"]


def use_issue_report(folder: Path, content: bytes) -> None:
    """A score goes into the archive of an issue report."""
    (folder / "score.json").write_bytes(content)
    (folder / "issue.zip").unlink(missing_ok=True)
    write_issue_report(folder / "issue.zip", {"checks": []}, score=folder / "score.json")


def use_log(folder: Path, content: bytes) -> None:
    """Read what `tune --resume` goes on from, and everything in it that a search asks for."""
    (folder / "trials.jsonl").write_bytes(content)
    log = TuningLog(folder / "trials.jsonl")
    if log.settings is None:
        return
    log.refuse_other(LOG[0]["settings"])
    log.refuse_foreign(["stem", "head"], ["saturating"])
    assert all(isinstance(log.settings[key], dict) for key in ("start_costs", "sensitivities"))
    assert all(isinstance(ms, float) for pair in log.settings["block_ms"].values() for ms in map(float, pair))
    known = RecordedRaces(log, lambda candidate, against: Ratio(1.0, 0.1))
    assert all(
        known.ratio(candidate_of(line), candidate_of(line["against"])).value > 0 for line in log.trials
    )
    final = log.found("final") or {"candidates": [], "timings": []}
    assert all(median / p95 > 0 for median, p95 in final["timings"])
    assert log.seconds >= 0


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
        (damaged, json_edited, json_resealed, json_resealed, *TEXT),
        DEEP,
        says=("{folder}/report.json", AGAIN),
    ),
    Harness(
        "manifest",
        lambda folder: saved(make_manifest(), folder),
        use_manifest,
        (damaged, json_edited, json_resealed, json_resealed, *TEXT),
        DEEP,
        says=("{folder}/manifest.json", AGAIN),
    ),
    Harness(
        "recording",
        lambda _: [json_bytes(RECORDING)],
        use_recording,
        (damaged, json_edited, json_edited, *TEXT),
        (*DEEP, *linked_recordings()),
        says=("{folder}",),
        words=recording_in,
        weight=0.6,
    ),
    Harness(
        "recording-to-fit",
        lambda _: [json_bytes(RECORDING)],
        lambda folder, content: command(*fit_in(folder, content)),
        (damaged, json_edited, json_edited, *TEXT),
        says=("{folder}",),
        words=fit_in,
        weight=0.3,
    ),
    Harness(
        "inspector",
        lambda _: [json_bytes(LAYERS), json_bytes(NEWER_LAYERS)],
        damages=(damaged, json_edited, json_edited, *TEXT),
        hostile=DEEP,
        weight=0.6,
        **beside_recording("layers"),
    ),
    Harness(
        "trtexec-profile",
        lambda _: [json_bytes(PROFILE)],
        damages=(damaged, json_edited, json_edited, *TEXT),
        hostile=DEEP,
        weight=0.6,
        **beside_recording("profile"),
    ),
    Harness(
        "score",
        lambda _: [json_bytes(SCORE)],
        use_score,
        (damaged, json_edited, json_edited, json_edited, *TEXT),
        (*DEEP, json_bytes(SCORE | {"score": []}), json_bytes(SCORE | {"engines": {"int8": "x" * 5000}})),
        says=("{folder}",),
        words=score_in,
    ),
    Harness(
        "score-to-send",
        lambda _: [json_bytes(SCORE)],
        use_issue_report,
        (damaged, json_edited, *TEXT),
        (json_bytes(SCORE | {"note": "\ud800"}),),
        says=("{folder}",),
        weight=0.3,
    ),
    Harness(
        "tuning-log",
        lambda _: [lines(LOG[:count]) for count in (1, 2, 4)],
        use_log,
        (damaged, line_edited, line_edited, line_edited, *TEXT),
        DEEP,
    ),
    Harness(
        "json",
        lambda _: [json.dumps({"a": [1, None, "ü"], "b": {"c": 1.5}}).encode()],
        use_json,
        (damaged, *TEXT),
        DEEP,
        says=("{folder}/x.json",),
    ),
)
