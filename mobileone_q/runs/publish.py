"""Fills the folder of a new run: graphs, accuracy, report, manifest. `calibrate` and `qat` share it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch

from mobileone_q.data.batches import Batches
from mobileone_q.data.inputs import Inputs
from mobileone_q.evaluation import block_signal
from mobileone_q.evaluation.comparison import Comparison
from mobileone_q.export.graph import export_onnx
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.progress import progress_if
from mobileone_q.report.schema import ImageCounts, ImagesRecord, Manifest, Report
from mobileone_q.runs.engines.graphs import graph_facts
from mobileone_q.runs.measuring.measure import measure_accuracy, measure_maps
from mobileone_q.runs.storage.folder import RunFolder, UnfinishedRun
from mobileone_q.runs.storage.integrity import GRAPHS, PLAIN_GRAPH, hashes


def publish(
    folder: RunFolder,
    fused: FusedModel,
    quantized: QuantizedModel,
    report: Report,
    manifest: Manifest,
    inputs: Inputs,
    evaluation: Batches | None,
    *,
    plain: QuantizedModel | None = None,
    progress: bool = False,
) -> Report:
    """Export both networks, measure them on ``evaluation``, and write the report and the manifest.

    Without ``evaluation`` no accuracy is measured, and the report says so. ``report`` and
    ``manifest`` hold what the caller knows; the image counts, the accuracy and the hashes of the files
    are filled in here.
    ``plain`` is a second INT8 network, on plain grids, which is measured as well.
    The manifest comes last: it marks the run as finished.

    Raises:
        ExportError: a network that the ONNX contract cannot hold.
        DataError: ``evaluation`` has no image, or a label that the network has no class for.
        FileError: the folder cannot be written to.
    """
    transform = manifest.preprocessing.to_dict() if manifest.preprocessing else None
    export = partial(
        export_onnx, preprocessing=transform, input_form=manifest.input, facts=graph_facts(manifest)
    )
    export(fused, folder.onnx("fp32"))
    export(quantized, folder.onnx("int8"))
    if fused.arch.maps:
        export(fused, folder.onnx("fp16"), float_precision="fp16")
    if evaluation is not None:
        with progress_if(progress, "evaluating", len(evaluation)) as advance:
            unfinished = UnfinishedRun(folder.path)
            measured = measure_accuracy(
                unfinished, quantized, evaluation, advance, evaluation.name_of, manifest.preprocessing
            )
        report = report.with_sections(**measured._asdict())
        if fused.arch.maps:
            with progress_if(progress, "comparing maps", len(evaluation)) as advance:
                maps = measure_maps(unfinished, fused, evaluation, manifest.preprocessing, advance)
            report = report.model_copy(update={"maps": maps})
    if plain is not None:
        export(plain, folder.path / PLAIN_GRAPH)
        if evaluation is not None:
            with TemporaryDirectory() as aside:
                measured_plain = Comparison(fused, evaluation, Path(aside)).with_int8(plain)
            report = report.model_copy(update={"plain_grids": measured_plain})
    few = torch.from_numpy(inputs.calibration.first(block_signal.IMAGES))
    found = {
        "images": image_counts(inputs, evaluation),
        "graphs": hashes(folder.path, GRAPHS),
        "sizes": {name: (folder.path / name).stat().st_size for name in GRAPHS},
        "signals": block_signal.block_signals(fused, quantized, few),
    }
    report = report.model_copy(update=found)
    folder.write_report(report, manifest)
    folder.write_manifest(manifest)
    return report


def image_counts(inputs: Inputs, evaluation: Batches | None) -> ImageCounts:
    """How many inputs were used for what, and which could not be read."""
    calibration = inputs.calibration
    evaluated_on: Literal["evaluation", "calibration"] | None = None
    if evaluation is not None:
        evaluated_on = "calibration" if evaluation is calibration else "evaluation"
    return ImageCounts(
        calibration=len(calibration),
        evaluation=len(evaluation) if evaluation is not None else 0,
        evaluated_on=evaluated_on,
        skipped=calibration.skipped | (evaluation.skipped if evaluation is not None else {}),
    )


def images_record(inputs: Inputs, evaluation: Batches | None) -> ImagesRecord:
    """Which inputs were used; where nothing is evaluated, those for calibration stand for both."""
    source = inputs.calibration.source.name
    return ImagesRecord(
        source=source,
        evaluation=evaluation.source.name if evaluation is not None else source,
        sha256=inputs.calibration.fingerprint(),
    )
