"""Options of commands that build engines, named after the fields of BuildOptions.

click alone is imported here, so that ``mobileone-q --help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def batch_range(_: click.Context, __: click.Parameter, value: str) -> tuple[int, int, int]:
    """``4`` is a fixed batch, ``1:4:8`` the least, the typical and the most."""
    try:
        sizes = [int(size) for size in value.split(":")]
    except ValueError:
        sizes = []
    least, typical, most = sizes * 3 if len(sizes) == 1 else sizes if len(sizes) == 3 else (0, 0, 0)
    if not 1 <= least <= typical <= most:
        raise click.BadParameter(f"{value!r} is neither N nor MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX")
    return least, typical, most


ENGINE_OPTIONS = (
    click.option(
        "--batch", callback=batch_range, default="1:1:8", show_default=True, metavar="MIN:OPT:MAX",
        help="Images at once; one number for a fixed batch.",
    ),
    click.option(
        "--workspace", "workspace_mb", type=click.IntRange(min=1), default=1024, show_default=True,
        help="The builder's memory on the device, MiB (TensorRT).",
    ),
    click.option(
        "--opt-level", "optimization_level", type=click.IntRange(0, 5),
        help="0 builds fast, 5 builds fast engines (TensorRT 8.6 and later).",
    ),
    click.option(
        "--timing-cache/--no-timing-cache", default=True, show_default=True,
        help="Reuse kernel timings of earlier builds on this device (TensorRT).",
    ),
    click.option(
        "--version-compatible", is_flag=True, help="The engine runs on later versions too (8.6 and later)."
    ),
    click.option(
        "--hardware-compatible", is_flag=True,
        help="The engine runs on any desktop GPU from Ampere on; not on Jetson (8.6 and later).",
    ),
    click.option(
        "--dla", "dla_core", type=click.IntRange(min=0),
        help="DLA core to build for, what it cannot do on the GPU (TensorRT before 11; --target dla).",
    ),
    click.option(
        "--compute-capability", "compute_capabilities", type=int, multiple=True,
        help="GPU generation to build for with no GPU at hand, such as 86; repeatable (tensorrt-rtx).",
    ),
    click.option(
        "--threads", type=click.IntRange(min=1), default=1, show_default=True,
        help="CPU threads (onnxruntime).",
    ),
)  # fmt: skip


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, in the order in which they stand."""
    for option in reversed(ENGINE_OPTIONS):
        command = option(command)
    return command
