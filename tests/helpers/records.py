"""A report and a manifest with something in every section, for tests that need one."""

from __future__ import annotations

from typing import Any

from mobileone_q.evaluation.device_score import DeviceScore
from mobileone_q.evaluation.device_state import DeviceState, PowerDraw
from mobileone_q.evaluation.latency import BlockTiming, Latency, Timing
from mobileone_q.evaluation.metrics import EngineParity, MeasuredAccuracy, Parity, SimulationFidelity, TopK
from mobileone_q.report.schema import (
    ChosenBlock,
    FineTuning,
    FloatBlocks,
    FusionErrors,
    ImageCounts,
    ImagesRecord,
    Manifest,
    Report,
    Seconds,
    WeightsRecord,
)

ACCURACY = MeasuredAccuracy(
    images=4,
    fp32=TopK(0.75, 1.0),
    int8=TopK(0.5, 1.0),
    drop_pts=25.0,
    drop_ci95_pts=(-10.0, 60.0),
    agreement=0.75,
    kl=0.01,
    engine="onnxruntime 1.0",
)
LATENCY = Latency(
    runtime="tensorrt 10.3.0",
    device="a device",
    threads=1,
    batch=1,
    runs=5,
    fp32=Timing(4.0, 4.5),
    int8=Timing(1.0, 1.5),
    fp16=Timing(2.0, 2.5),
    speedup=4.0,
    layer_sum_ms=(3.0, 1.5),
    fp16_sum_ms=1.25,
    layers=(
        BlockTiming("stem", 1.0, 0.5, 2.0, 0.75),
        BlockTiming("head", 2.0, 1.0, 2.0, 0.5, slower_than_fp16=True, shared=("fp16",)),
    ),
    reformat_ms={"fp32": 0.0, "fp16": 0.125, "int8": 0.25},
    graph={"fp32": Timing(3.5, 4.0), "fp16": Timing(1.75, 2.0), "int8": Timing(0.875, 1.0)},
    note="a note",
)

SCORE = DeviceScore(
    verdict="kept",
    reason="top-1 is 74.00 %, and 74.50 % was promised",
    grids="saturating",
    precision="int8",
    graph_sha256="3" * 64,
    engine_sha256="4" * 64,
    runtime="tensorrt 10.3.0",
    images=100,
    skipped=2,
    labelled=100,
    compared=0,
    top1=0.74,
    promised_top1=0.745,
    agreement=None,
    kl=None,
    expected=None,
    device="a module",
    state=DeviceState(
        power_mode="MAXN",
        clocks_mhz={"gpu": 918.0, "gpu limit": 1020.0},
        power_w={"VDD_IN": PowerDraw(9.25, 11.5), "VDD_SOC": PowerDraw(2.0, 3.0)},
        samples=29,
    ),
)


def make_report(**changes: Any) -> Report:
    """A report with every section."""
    row = EngineParity("int8 onnxruntime", "int8 simulation", 0.5, 0.05, 0.9, 0.01, 0.5)
    fields: dict[str, Any] = {
        "arch": "s0",
        "model": "a network",
        "target": "tensorrt",
        "images": ImageCounts(8, 4, "evaluation", {"a.jpg": "truncated"}),
        "graphs": {"fp32.onnx": "2" * 64, "int8.onnx": "3" * 64},
        "seconds": Seconds(0.5, 2.0, 3.0),
        "fusion": FusionErrors(1e-14, 1e-6),
        "float_blocks": FloatBlocks((ChosenBlock("stem", 0.1, 1.5),), ("stem", "head")),
        "accuracy": ACCURACY,
        "simulation": SimulationFidelity(4, 0.9, 0.01, 0.02),
        "latency": LATENCY,
        "parity": Parity(4, (row,), {"int8 tensorrt": "there is no GPU"}),
        "qat": FineTuning(20, 10, 3.0, {"loss": 0.5}, {"loss": 1.5}, ACCURACY),
    }
    return Report(**fields | changes)


def make_manifest(**changes: Any) -> Manifest:
    """A manifest with every entry."""
    from mobileone_q.data.sample import PREPROCESSING

    fields: dict[str, Any] = {
        "made": "2026-01-01T00:00:00+00:00",
        "versions": {"mobileone-q": "0", "torch": "2.0"},
        "arch": "s0",
        "target": "tensorrt",
        "task": "classify",
        "title": "a network",
        "is_sample": False,
        "weights": WeightsRecord("weights.pth", "0" * 64, "apple"),
        "images": ImagesRecord("images", "others", "1" * 64),
        "preprocessing": PREPROCESSING,
        "classes": tuple(f"name {number}" for number in range(10)),
        "recipe": {"target": "tensorrt", "equalize": True, "seconds": 240.0, "keep_float": ("stem",)},
        "seed": 0,
        "max_drop_pts": 0.5,
        "qat": {"epochs": 30, "optimizer": "sgd", "augmentation": {"crop": 0.5}},
        "tuned_from": "runs/s0",
        "artefacts": {"fp32.onnx": "2" * 64, "int8.onnx": "3" * 64},
    }
    return Manifest(**fields | changes)
