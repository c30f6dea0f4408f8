"""The YAML file in which `tune` writes its choice, for `calibrate --config` and `build-engine --config`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobileone_q.files import write_text
from mobileone_q.input_form import InputForm
from mobileone_q.names import BackendName, Target
from mobileone_q.report.provenance import installed_versions
from mobileone_q.report.tuning import Tuning, answer

HEADING = """\
# What `mobileone-q tune` chose. To repeat it:
#     mobileone-q calibrate --config {name} --arch {arch} --weights CHECKPOINT --data IMAGES
#     mobileone-q build-engine --config {name} RUN
# The first calibrates with the chosen blocks in floating point. The second needs no images: it makes them
# floating point in the engine of any run of this network. `expected` is what tune measured.
"""


def write_config(
    path: Path, tuning: Tuning, arch: str, target: Target, backend: BackendName, form: InputForm
) -> None:
    """Write the choice to ``path``; ``form`` is the input of the run's graphs.

    Raises:
        FileError: the folder cannot be written to.
    """
    import yaml  # slow to import

    chosen = tuning.chosen.keep_float
    build: dict[str, Any] = {"backend": backend, "threads": tuning.threads, "batch": tuning.batch}
    if tuning.pays:
        build |= {"int8": True, "keep-float": list(chosen)}
    elif tuning.float_precision == "fp16":
        build["fp16"] = True
    else:
        build["fp32"] = True
    pixels = {"input": form.kind, "channel-order": form.channel_order} if form.is_pixels else {}
    value = {
        "calibrate": {
            "target": target,
            **pixels,
            "grids": tuning.chosen.activation_grids,
            "keep-float": list(chosen),
        },
        "build-engine": build,
        "expected": {
            "answer": answer(tuning),
            "runtime": tuning.runtime,
            "device": tuning.device,
            "versions": installed_versions(),
            "latency-ms": round(tuning.chosen.timing.median_ms, 4),
            "latency-before-ms": round(tuning.start.timing.median_ms, 4),
            f"latency-{tuning.float_precision}-ms": round(tuning.floating.median_ms, 4),
            tuning.budget: round(tuning.chosen.cost, 6),
            f"{tuning.budget}-before": round(tuning.start.cost, 6),
            f"{tuning.budget}-without-images": round(tuning.cost_without_images, 6),
            "images": tuning.images,
        },
    }
    text = yaml.safe_dump(value, sort_keys=False, width=100, allow_unicode=True)
    write_text(path, HEADING.format(name=path.name, arch=arch) + text)
