"""What a bundle's score.py measured on a device, read back from its score.json.

score.json is also a recording of one engine: ``engines`` holds what build.sh recorded with trtexec, as
:mod:`mobileone_q.evaluation.recorded_profile` reads it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from mobileone_q.errors import EngineError
from mobileone_q.evaluation.device_state import DeviceState
from mobileone_q.files import read_json
from mobileone_q.names import Precision

Share = Annotated[float, Field(ge=0, le=1)]
Nats = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
AGAIN = "run the bundle's score.py again"


@dataclass(frozen=True)
class ExpectedAccuracy:
    """What the run's simulation does with the very images that were compared."""

    agreement: Share
    kl: Nats


@dataclass(frozen=True)
class DeviceScore:
    """Accuracy of one engine on one device, beside what the run promised.

    ``agreement`` and ``kl`` (nats) are with the FP32 logits that travelled with the bundle, on
    ``compared`` images, and ``expected`` is what they should be. ``top1`` is on ``labelled`` images.
    ``verdict`` says whether the engine keeps the promise, and ``reason`` why, in one line. ``grids`` names
    the graph, ``graph_sha256`` its bytes. ``state`` is what build.sh recorded of the device while it
    timed the engine.
    """

    verdict: Literal["kept", "broken", "unknown"]
    reason: str
    grids: str
    precision: Precision
    graph_sha256: str
    engine_sha256: str
    runtime: str
    images: Count
    skipped: Count
    labelled: Count
    compared: Count
    top1: Share | None
    promised_top1: Share | None
    agreement: Share | None
    kl: Nats | None
    expected: ExpectedAccuracy | None
    device: str = "unknown device"
    state: DeviceState | None = None


def read_score(path: Path) -> DeviceScore | None:
    """The score in a file that score.py wrote; None in a recording without one.

    Raises:
        FileError: the file cannot be read.
        EngineError: it has a score that is not in the form of score.py's.
    """
    value = read_json(path)
    if not isinstance(value, dict) or "score" not in value:
        return None
    known = {field.name for field in fields(DeviceScore)}
    score: Any = value["score"]
    try:
        facts = {key: inner for key, inner in score.items() if key in known}
        facts["device"] = value.get("device", "unknown device")
        return TypeAdapter(DeviceScore).validate_json(json.dumps(facts), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "score"
        raise EngineError(f"{path} is not what score.py writes: {field}: {first['msg']}; {AGAIN}") from None
    except (AttributeError, ValueError):
        raise EngineError(f"{path} is not what score.py writes: `score` is not an object; {AGAIN}") from None
