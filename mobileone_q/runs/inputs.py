"""The inputs that a run was made with, and others prepared in the same way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mobileone_q.architecture.spec import Architecture
from mobileone_q.data import sample
from mobileone_q.data.batches import Batches
from mobileone_q.data.class_numbers import numbered_as
from mobileone_q.data.hugging_face import is_hugging_face
from mobileone_q.data.inputs import ARRAYS, Inputs, as_source, choose_inputs, draw, sample_images
from mobileone_q.data.settings import InputOptions
from mobileone_q.data.shard_files import is_shards
from mobileone_q.data.sources import Source
from mobileone_q.errors import DataError
from mobileone_q.report.schema import Manifest
from mobileone_q.runs.settings import MOST_TUNED
from mobileone_q.runs.storage.folder import RunFolder


def inputs_of(
    run: RunFolder, arch: Architecture, data: Path | None, eval_data: Path | None, images: int | None
) -> Inputs:
    """The inputs that a run was calibrated and evaluated on, where options do not say otherwise.

    Raises:
        DataError: the inputs are no longer there, or are too few.
    """
    manifest = run.read_manifest()
    images = images or run.read_report().images.calibration
    if manifest.is_sample and data is None and eval_data is None:
        return choose_inputs(arch, InputOptions(images=images, seed=manifest.seed))
    seen = manifest.images
    if eval_data is None and data is None and seen.evaluation not in (None, seen.source):
        eval_data = Path(seen.evaluation)
    is_named = is_shards(seen.source) or is_hugging_face(seen.source)
    if data is None and not (is_named or Path(seen.source).exists()):
        raise DataError(
            f"the inputs that {run.path} was calibrated on are not on disk ({seen.source}); pass --data"
        )
    options = InputOptions(
        weights=Path(manifest.weights.path),
        data=data or Path(seen.source),
        eval_data=eval_data,
        images=images,
        seed=manifest.seed,
    )
    return choose_inputs(arch, options).numbered(manifest.classes, arch)


def tuning_inputs(
    run: RunFolder, arch: Architecture, data: Path | None, eval_data: Path | None, images: int | None
) -> Inputs:
    """The inputs to fine-tune a run on, by default its own, and those to evaluate it on.

    ``images`` says how many of ``data`` to take; without it all are taken, up to :data:`MOST_TUNED`. Without
    ``eval_data`` the inputs to evaluate on are those of the run's last evaluation. Where these are gone,
    they are what was not taken of ``data``.

    Raises:
        DataError: there are no inputs, or too few.
    """
    if data is None:
        return inputs_of(run, arch, None, eval_data, images)
    given = inputs_of(run, arch, data, eval_data, 1)  # of the source, whose length says how many to take
    source = given.calibration.source
    chosen = draw(source, images or min(len(source), MOST_TUNED), run.read_manifest().seed)
    evaluation = given.evaluation if eval_data else _evaluated_before(run, arch) or chosen.left_over()
    return replace(given, calibration=chosen, evaluation=evaluation)


def _evaluated_before(run: RunFolder, arch: Architecture) -> Batches | None:
    """What the run was evaluated on; None where that is no longer on disk."""
    try:
        return inputs_of(run, arch, None, None, None).evaluated
    except DataError:
        return None


def comparison_inputs(run: RunFolder, arch: Architecture, data: Path | None, count: int | None) -> Batches:
    """Inputs to measure a run's engines on, prepared as they were for calibration.

    They are ``count`` drawn ones, or all where there are fewer or ``count`` is None.

    Without ``data``, those of the bundled sample, for its run alone.

    Raises:
        DataError: there are none, or the run was calibrated on inputs of another kind or shape.
    """
    manifest = run.read_manifest()
    if data is None:
        if not manifest.is_sample:
            kind = "FOLDER of images" if manifest.preprocessing else f"FILE{ARRAYS} of arrays"
            raise DataError(f"{run.path} is not of the bundled sample; pass --data {kind}")
        source = sample_images("evaluation", manifest.preprocessing or sample.PREPROCESSING)
        return _at_most(source, count)
    return prepared(data, arch, manifest, count)


def prepared(images: object, arch: Architecture, manifest: Manifest, count: int | None = None) -> Batches:
    """Inputs that a user gave, prepared as the run's were for calibration; the first ``count`` drawn.

    Raises:
        DataError: inputs of another kind or shape than the run was calibrated on.
    """
    if isinstance(images, Batches):
        return images
    if isinstance(images, str | Path):
        is_array_file = Path(images).suffix == ARRAYS
        if manifest.preprocessing is None and not is_array_file:
            raise DataError(f"the run was calibrated on arrays; pass --data FILE{ARRAYS}, not {images}")
        if manifest.preprocessing is not None and is_array_file:
            raise DataError(f"the run was calibrated on images; pass --data FOLDER of images, not {images}")
    source = as_source(images, arch, manifest.preprocessing)
    if manifest.task == "classify":
        source = numbered_as(source, manifest.classes, arch.num_classes)
    return _at_most(source, count)


def _at_most(source: Source, count: int | None) -> Batches:
    return Batches.choose(source, None if count is None else min(count, len(source)))
