"""What a run was calibrated and evaluated on, and what its engines are compared on."""

from __future__ import annotations

from pathlib import Path

from mobileone_q.architecture.spec import Architecture
from mobileone_q.data.arrays import ArrayBatches, ArrayFile
from mobileone_q.data.inputs import ARRAYS, Inputs, choose_inputs, sample_images
from mobileone_q.data.sources import Batches, ImageFolder
from mobileone_q.errors import DataError
from mobileone_q.report.schema import ImageCounts, ImagesRecord
from mobileone_q.runs.folder import Run


def inputs_of(
    run: Run, arch: Architecture, data: Path | None, eval_data: Path | None, images: int | None
) -> Inputs:
    """The inputs that a run was calibrated and evaluated on, where options do not say otherwise."""
    manifest = run.read_manifest()
    images = images or run.read_report().images.calibration
    if manifest.is_sample and data is None and eval_data is None:
        return choose_inputs(arch, None, None, None, images, manifest.seed)
    seen = manifest.images
    if eval_data is None and data is None and seen.evaluation != seen.source:
        eval_data = Path(seen.evaluation)
    weights = Path(manifest.weights.path)
    return choose_inputs(arch, weights, data or Path(seen.source), eval_data, images, manifest.seed)


def comparison_inputs(run: Run, arch: Architecture, data: Path | None, count: int) -> Batches | ArrayBatches:
    """At most ``count`` inputs to compare a run's engines on, prepared as they were for calibration.

    Without ``data``, those of the bundled sample, for its run alone.

    Raises:
        DataError: there are none, or the run was calibrated on inputs of another kind or shape.
    """
    manifest = run.read_manifest()
    if data is None and not manifest.is_sample:
        kind = "FOLDER of images" if manifest.preprocessing else f"FILE{ARRAYS} of arrays"
        raise DataError(f"{run.path} is not of the bundled sample; pass --data {kind}")
    is_array_file = data is not None and data.suffix == ARRAYS
    if manifest.preprocessing is None:
        if data is None or not is_array_file:
            raise DataError(f"{run.path} was calibrated on arrays; pass --data FILE{ARRAYS}, not {data}")
        file, wanted = ArrayFile(data), (arch.in_channels, *arch.image_size)
        if file.x.shape[1:] != wanted:
            raise DataError(
                f"{data} has inputs of shape {file.x.shape[1:]}, and {arch.name} takes {wanted}; "
                "pass arrays like those for calibration"
            )
        return ArrayBatches.choose(file, min(count, len(file)))
    if is_array_file:
        raise DataError(f"{run.path} was calibrated on images; pass --data FOLDER of images, not {data}")
    source = ImageFolder(data) if data else sample_images("evaluation")
    return Batches.choose(source, manifest.preprocessing, min(count, len(source)))


def image_counts(inputs: Inputs) -> ImageCounts:
    """The report's section ``images``."""
    return ImageCounts(**inputs.describe())


def images_record(inputs: Inputs) -> ImagesRecord:
    """The manifest's entry ``images``."""
    return ImagesRecord(**inputs.identify())
