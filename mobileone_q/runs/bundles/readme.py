"""The README of a bundle, for whoever meets the folder on the device and knows nothing of this project."""

from __future__ import annotations

import shlex

from mobileone_q.engines import BuildOptions
from mobileone_q.evaluation.metrics import Accuracy
from mobileone_q.names import Precision
from mobileone_q.report.schema import Manifest, Report
from mobileone_q.runs.bundles.build_script import ENGINE

TEXT = """# {title}

This folder builds and runs one network with TensorRT. The device needs TensorRT 8.5 or later with `trtexec`
(JetPack brings them), Python 3.8 or later with the package `tensorrt`, and NumPy. It needs neither torch nor
mobileone-q.

## Copy

    scp -r {folder} USER@DEVICE:

## Build

    cd {folder}
    sudo jetson_clocks     # if you want to compare times: fixes the clocks at the limit of the power mode
    ./build.sh

This writes `{engine}`, for {batches}. It runs on this device and this version of TensorRT alone.
The script also times the engine. Beside it lie the times of each layer, what each layer computes in, and the
power mode, clocks and power during the timed run: `{engine}.profile.json`, `.layers.json`, `.device.json`.
`trtexec` is looked for where JetPack puts it, then on `PATH`. Set `TRTEXEC` to its path if it is elsewhere.

## Run

    python3 run_image.py {engine} {given}

{reads} The names of the classes are in `labels.txt`.

## Score

    python3 score.py {engine} FOLDER

FOLDER has a folder per class, with {given} files. One line says whether the engine keeps what was measured
before it was bundled. The exit code is 1 where it does not.{reference}

Copy this folder back. Where mobileone-q is installed, put the result into the report of the run, or look at
the time and type of each block:

    mobileone-q report RUN --from {folder}/score.json
    mobileone-q profile --from {folder}/score.json

## What is not proven

{measured}

That was measured where the network was quantized, not in TensorRT. Nothing of this engine has been measured
on a device before you build it: no accuracy, no time, no power.{int8}
"""
READS_IMAGES = "Binary PPM and .npy (uint8, height x width x RGB) need NumPy alone, other formats Pillow."
READS_ARRAYS = "ARRAY.npy has the shape in `preprocessing.json`, normalized as it says there."
REFERENCE = """
Images of the same names as those in `reference.npz` are also compared with the FP32 network's answers."""
INT8 = """

An engine that may use INT8 can still compute a layer in floating point. The last command above
says which do."""


def readme(
    report: Report, manifest: Manifest, options: BuildOptions, folder: str, has_reference: bool
) -> str:
    """The text of README.md for a bundle in a folder of this name; ``options`` are those of its engine."""
    low, _, high = options.batch
    core = "" if options.dla_core is None else f", DLA core {options.dla_core}"
    takes_images = manifest.preprocessing is not None
    return TEXT.format(
        title=f"MobileOne {manifest.arch} in {options.precision.upper()} for TensorRT{core}",
        folder=shlex.quote(folder),
        engine=ENGINE,
        batches=f"batches of {low} to {high}" if high > low else f"batches of {high}",
        given="IMAGE" if takes_images else "ARRAY.npy",
        reads=READS_IMAGES if takes_images else READS_ARRAYS,
        reference=REFERENCE if has_reference else "",
        measured=_measured(report.accuracy, options.precision),
        int8=INT8 if options.precision == "int8" else "",
    )


def _measured(accuracy: Accuracy | None, precision: Precision) -> str:
    """What the run knows of the network in this precision, in a sentence or two."""
    if accuracy is None:
        return "The accuracy of this network was not measured."
    if precision != "int8":
        known = accuracy.fp32
        top1 = f"had {100 * known.top1:.2f} % top-1" if known else "was looked at, without labels,"
        return f"The FP32 network {top1} on {accuracy.images} images."
    if accuracy.kl is None or accuracy.agreement is None:
        return f"INT8 was compared with FP32 on {accuracy.images} inputs."
    drop = accuracy.drop_pts
    moved = "" if drop is None else f" Top-1 {'fell' if drop > 0 else 'rose'} by {abs(drop):.2f} points."
    return (
        f"INT8 gave the class that FP32 gives for {100 * accuracy.agreement:.2f} % of {accuracy.images} "
        f"images (KL {accuracy.kl:.4f} nats).{moved}"
    )
