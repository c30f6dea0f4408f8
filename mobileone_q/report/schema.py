"""The two files that describe a run, as types: ``report.json`` and ``manifest.json``.

The report says what the run cost and won. It grows section by section as commands run, and a section
that no command has made yet is None. The manifest says what the run was made from; later commands
read it to know what they work on.

Both are checked when they are loaded and before they are written. ``report.schema.json`` and
``manifest.schema.json`` in this folder say the same in JSON Schema. They are generated, by
``python -m mobileone_q.report.schema``, whenever a type in them changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.evaluation.block_signal import Signals
from mobileone_q.evaluation.changes import Changes
from mobileone_q.evaluation.device_score import DeviceScore
from mobileone_q.evaluation.latency import Latency
from mobileone_q.evaluation.maps import MapSimilarity
from mobileone_q.evaluation.metrics import Accuracy, MeasuredAccuracy, Parity, SimulationFidelity
from mobileone_q.files import DIGEST, write_text
from mobileone_q.input_form import FLOAT_INPUT, InputForm
from mobileone_q.models.changes import CodeChanges
from mobileone_q.names import Target, Task
from mobileone_q.report.document import Document
from mobileone_q.report.tuning import Tuning

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DIGEST_MEANING = "SHA-256 of the other fields, as JSON with sorted keys and without spaces."

# A setting that a user chose, recorded so that the run can be made again.
Setting = bool | int | float | str | tuple[int | float | str, ...] | None
Settings = Mapping[str, Setting | Mapping[str, Setting]]


@dataclass(frozen=True)
class ImageCounts:
    """How many inputs were used for what, and which ones could not be read.

    ``evaluated_on`` says whether accuracy was measured on other inputs than those for calibration;
    it is None where none was measured. ``skipped`` gives the reason for each unreadable input.
    """

    calibration: int
    evaluation: int
    evaluated_on: Literal["evaluation", "calibration"] | None
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class Seconds:
    """How long each step took, in seconds; None for a step that was not taken."""

    fuse: float | None = None
    calibrate: float | None = None
    qat: float | None = None


@dataclass(frozen=True)
class FusionErrors:
    """Largest relative errors of the fusion.

    ``worst`` is over all blocks and the logits, in float64. ``float32_end_to_end`` is of the logits,
    with weights rounded to float32.
    """

    worst: float
    float32_end_to_end: float


@dataclass(frozen=True)
class ChosenBlock:
    """A block that was left in floating point to meet an accuracy budget.

    ``drop_without_pts`` is the top-1 drop, in points, with this block in INT8 and the other chosen
    ones in floating point. ``kl`` is what quantizing this block alone costs, in nats.
    """

    name: str
    kl: float
    drop_without_pts: float


@dataclass(frozen=True)
class FloatBlocks:
    """Blocks in floating point: those ``chosen`` for an accuracy budget, and ``all``, the user's too."""

    chosen: tuple[ChosenBlock, ...]
    all: tuple[str, ...]


@dataclass(frozen=True)
class FineTuning:
    """How fine-tuning went.

    ``metrics`` are those of the weights kept, ``start`` those before the first step; ``kept_step`` is
    the step whose weights were kept. ``before`` is the accuracy of the run that was fine-tuned, None
    where it had none, and ``maps_before`` says how alike its maps were to those of FP32. ``changes`` says
    which codes and scales are others.
    """

    steps: int
    kept_step: int
    seconds: float
    metrics: Mapping[str, float]
    start: Mapping[str, float]
    before: MeasuredAccuracy | None
    changes: CodeChanges | None = None
    maps_before: tuple[MapSimilarity, ...] = ()


@dataclass(frozen=True)
class BlockCost:
    """What quantizing one block alone costs: KL in nats and top-1 points, inputs and weights apart."""

    name: str
    input_kl: float
    weight_kl: float
    input_drop_pts: float | None
    weight_drop_pts: float | None

    @property
    def kl(self) -> float:
        """Both divergences together."""
        return self.input_kl + self.weight_kl


@dataclass(frozen=True)
class Sensitivity:
    """Every block's cost, the costliest first, on ``images`` images; from `calibrate --sensitivity`."""

    images: int
    blocks: tuple[BlockCost, ...]


@dataclass(frozen=True)
class WeightsRecord:
    """The checkpoint: its path, the SHA-256 of its bytes, and whose names its tensors have."""

    path: str
    sha256: str
    layout: str


@dataclass(frozen=True)
class ImagesRecord:
    """Which inputs were used: the sources' names, and a SHA-256 over the calibration inputs."""

    source: str
    evaluation: str
    sha256: str


class Report(Document):
    """What a run cost and won: ``report.json``."""

    arch: str
    model: str = Field(description="Title of the network, for people.")
    target: Target
    images: ImageCounts
    graphs: Mapping[str, str] = Field(description="SHA-256 of the graphs that were measured, by file name.")
    seconds: Seconds = Seconds()
    fusion: FusionErrors | None = None
    float_blocks: FloatBlocks | None = None
    accuracy: MeasuredAccuracy | None = None
    simulation: SimulationFidelity | None = None
    plain_grids: Accuracy | None = Field(
        default=None, description="Accuracy of the second INT8 graph, on plain grids, where the run has one."
    )
    device: DeviceScore | None = Field(
        default=None, description="Accuracy that the bundle's score.py measured on a device."
    )
    latency: Latency | None = None
    parity: Parity | None = None
    qat: FineTuning | None = None
    sizes: Mapping[str, int] = Field(default={}, description="Bytes of the graphs, by file name.")
    signals: Signals | None = None
    sensitivity: Sensitivity | None = None
    changes: Changes | None = None
    tuning: Tuning | None = Field(default=None, description="What `tune` chose.")

    maps: tuple[MapSimilarity, ...] | None = Field(
        default=None, description="A backbone's maps beside those of FP32, in INT8 and in FP16."
    )

    def with_sections(
        self,
        *,
        accuracy: MeasuredAccuracy | None = None,
        simulation: SimulationFidelity | None = None,
        latency: Latency | None = None,
        parity: Parity | None = None,
        changes: Changes | None = None,
        device: DeviceScore | None = None,
    ) -> Report:
        """A report with these sections in place of its own; None leaves a section as it is."""
        sections = {
            "accuracy": accuracy,
            "simulation": simulation,
            "latency": latency,
            "parity": parity,
            "changes": changes,
            "device": device,
        }
        return self.model_copy(update={key: value for key, value in sections.items() if value is not None})


class Manifest(Document):
    """What a run was made from: ``manifest.json``. It is written last and marks a run as finished."""

    made: str = Field(description="Date and time, UTC, ISO 8601.")
    versions: Mapping[str, str] = Field(description="Versions of the packages that made the run.")
    arch: str
    target: Target
    task: Task
    title: str
    is_sample: bool = Field(description="Whether the run is of the bundled sample.")
    weights: WeightsRecord
    images: ImagesRecord
    preprocessing: Preprocessing | None = Field(
        description="What images go through; null for a run on arrays, which come normalized."
    )
    classes: tuple[str, ...] | None = Field(description="Class names, by class number.")
    recipe: Settings
    seed: int
    input: InputForm = Field(default=FLOAT_INPUT, description="What the run's graphs take.")
    max_drop_pts: float | None = None
    max_kl: float | None = Field(
        default=None, description="Largest KL(FP32 to INT8), in nats, at which a device may choose a graph."
    )
    qat: Settings | None = None
    tuned_from: str | None = Field(default=None, description="The run that was fine-tuned, or tuned.")
    tuning: Settings | None = Field(default=None, description="The options of `tune`, where it made the run.")
    command: str | None = Field(default=None, description="The command line, as it was typed.")
    artefacts: Mapping[str, str] = Field(
        default={}, description="SHA-256 of the files that were made with the run, by name."
    )


def json_schemas() -> dict[str, str]:
    """The JSON Schema of each file, as text, by file name."""
    models: dict[str, type[Document]] = {"report": Report, "manifest": Manifest}
    texts = {}
    for name, model in models.items():
        schema = {"$schema": DIALECT, **_plain(model.model_json_schema(mode="serialization"))}
        schema["properties"][DIGEST] = {"type": "string", "description": DIGEST_MEANING}
        schema["required"] = [*schema["required"], DIGEST]
        texts[f"{name}.schema.json"] = json.dumps(schema, indent=2) + "\n"
    return texts


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON Schema without what differs between versions of pydantic, or repeats a key's name."""
    plain: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("$defs", "properties"):
            plain[key] = {name: _plain(inner) for name, inner in value.items()}
        elif key == "anyOf":
            plain[key] = [_plain(inner) for inner in value]
        elif not (key == "title" or (key == "enum" and "const" in schema)):
            plain[key] = value
    for definition in plain.get("$defs", {}).values():
        definition.pop("description", None)
        definition["additionalProperties"] = False
    return plain


def main() -> None:
    """Write the JSON Schemas beside this file."""
    for name, text in json_schemas().items():
        write_text(Path(__file__).with_name(name), text)


if __name__ == "__main__":
    main()
