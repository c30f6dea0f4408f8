"""What `info` and `roofline` are asked for; nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mobileone_q.jetson_devices import DEVICE_NAMES
from mobileone_q.names import ArchitectureName
from mobileone_q.settings import MOST_BATCH, MOST_RUNS, MOST_THREADS, setting


@dataclass(frozen=True)
class InfoOptions:
    """What `info` describes."""

    arch: str | None = setting(None, "", default_help="a table of s0 to s4")
    image_size: int | None = setting(None, "Side of the input, pixels.", low=32, default_help="224")
    runs: int = setting(10, "Timed runs in ONNX Runtime; 0 for none.", low=0, high=MOST_RUNS, needs="arch")
    threads: int = setting(1, "CPU threads (onnxruntime, openvino).", low=1, high=MOST_THREADS, needs="arch")


@dataclass(frozen=True)
class RooflineOptions:
    """Of which network and device `roofline` shows bounds."""

    device: str = setting(
        "",
        "Jetson module in a power mode, such as agx-orin@30w; the highest where none is named.",
        choices=DEVICE_NAMES,
        metavar="MODULE[@MODE]",
        is_required=True,
    )
    arch: ArchitectureName = setting("s0", "MobileOne variant.", is_required=True)
    image_size: int = setting(224, "Pixels.", low=32)
    recorded: Path | None = setting(
        None, "Fit the estimate to a recording of this device (as for profile --from).", flag="--fit"
    )
    batch: int = setting(1, "Images at once.", low=1, high=MOST_BATCH)
