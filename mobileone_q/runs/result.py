"""What calibration made of a model, and how it becomes a run: :meth:`Result.save`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from calibrate.mixed_precision import FloatBlock
from calibrate.recipe import Recipe
from mobileone_q.architecture.spec import Architecture
from mobileone_q.data.batches import Batches
from mobileone_q.data.class_numbers import numbered_as
from mobileone_q.data.inputs import Inputs, as_source
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.files import sha256
from mobileone_q.input_form import InputForm, settled_form
from mobileone_q.models.certificate import Certificate
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.names import ChannelOrder, InputKind
from mobileone_q.report.provenance import installed_versions, typed_command, utc_now
from mobileone_q.report.schema import (
    ChosenBlock,
    FloatBlocks,
    FusionErrors,
    Manifest,
    Report,
    Seconds,
    Sensitivity,
    WeightsRecord,
)
from mobileone_q.runs.model import Model
from mobileone_q.runs.publish import image_counts, images_record, publish
from mobileone_q.runs.run import Run
from mobileone_q.runs.storage.folder import RunFolder
from mobileone_q.runs.storage.integrity import PLAIN_QUANTIZED
from mobileone_q.runs.storage.staging import new_folder
from mobileone_q.settings import checks_arguments


@dataclass(frozen=True)
class Result:
    """What calibration made of a model; nothing is on disk yet.

    Attributes:
        model: the model that was calibrated.
        fused: the FP32 baseline: one convolution per block.
        certificate: how little fusion changed.
        quantized: the INT8 network, simulated in float32.
        inputs: the calibration inputs, and others for evaluation if there are any.
        recipe: the settings.
        float_blocks: blocks left in floating point to meet an accuracy budget.
        seconds: how long each step took.
        sensitivity: what quantizing each block alone costs, where that was asked for.
        plain: a second INT8 network, on plain grids; None where one was asked for.
        max_kl: the largest KL, in nats, at which a device may choose one of the two.
    """

    model: Model
    fused: FusedModel
    certificate: Certificate
    quantized: QuantizedModel
    inputs: Inputs
    recipe: Recipe
    seed: int
    float_blocks: tuple[FloatBlock, ...] = ()
    max_drop_pts: float | None = None
    seconds: Seconds = field(default_factory=Seconds)
    sensitivity: Sensitivity | None = None
    plain: QuantizedModel | None = None
    max_kl: float | None = None

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What images go through; None for arrays, which come normalized."""
        return self.inputs.preprocessing

    @checks_arguments
    def save(
        self,
        path: str | Path | None = None,
        evaluate_on: object = None,
        *,
        input: InputKind = "float",
        channel_order: ChannelOrder = "rgb",
        progress: bool = False,
    ) -> Run:
        """Write a run folder: graphs, weights, report, manifest. It appears whole or not at all.

        Args:
            path: the folder, new or empty; by default the first free ``runs/ARCH``, numbered.
            evaluate_on: labelled images in any form that :func:`calibrate` takes. Without them no
                accuracy is measured, and the report says so.
            input: what the graphs take: ``float`` is normalized float32 (N, 3, H, W), ``uint8`` pixels
                (N, H, W, 3).
            channel_order: the order of the pixels' channels.
            progress: whether to show progress on standard error.

        Raises:
            RunError: the folder already holds something.
            DataError: images that cannot be used.
            ExportError: a network that cannot take pixels.
        """
        form = settled_form(input, channel_order)
        evaluation = None
        if evaluate_on is not None:
            names = self.model.class_names(self.inputs)
            evaluation = as_batches(evaluate_on, self.fused.arch, self.preprocessing, names)
        output, name = Path(path) if path is not None else None, self.fused.arch.name
        with new_folder(output, name) as place:
            folder = RunFolder(place.path)
            self.fused.save(folder.fused, certificate=self.certificate.to_dict())
            self.quantized.save(folder.quantized, recipe=self.recipe.to_dict())
            if self.plain is not None:
                self.plain.save(folder.path / PLAIN_QUANTIZED, recipe=self.recipe.to_dict())
            publish(
                folder, self.fused, self.quantized, self._report(), self._manifest(evaluation, form),
                self.inputs, evaluation, plain=self.plain, progress=progress,
            )  # fmt: skip
        return Run(place.final)

    def _report(self) -> Report:
        chosen = tuple(ChosenBlock(**block.to_dict()) for block in self.float_blocks)
        return Report(
            arch=self.fused.arch.name,
            model=self.inputs.title,
            target=self.quantized.target,
            images=image_counts(self.inputs, None),
            graphs={},
            seconds=self.seconds,
            fusion=FusionErrors(**self.certificate.summary()),
            float_blocks=FloatBlocks(chosen, tuple(self.quantized.keep_float)),
            sensitivity=self.sensitivity,
        )

    def _manifest(self, evaluation: Batches | None, form: InputForm) -> Manifest:
        arch, inputs, weights = self.fused.arch, self.inputs, self.model.checkpoint.path
        return Manifest(
            made=utc_now(),
            versions=installed_versions(),
            arch=arch.name,
            target=self.quantized.target,
            task=arch.task,
            title=inputs.title,
            is_sample=inputs.is_sample,
            weights=WeightsRecord(str(weights), sha256(weights), self.model.checkpoint.layout),
            images=images_record(inputs, evaluation),
            preprocessing=inputs.preprocessing,
            classes=self.model.class_names(inputs),
            recipe=self.recipe.to_dict(),
            seed=self.seed,
            input=form,
            max_drop_pts=self.max_drop_pts,
            command=typed_command(),
            max_kl=self.max_kl,
        )


def as_batches(
    images: object,
    arch: Architecture,
    preprocessing: Preprocessing | None,
    classes: Sequence[str] | None = None,
) -> Batches:
    """All of the images that a user gave, in order, prepared for ``arch`` and numbered by its class names."""
    if isinstance(images, Batches):
        return images
    source = as_source(images, arch, preprocessing)
    if arch.task == "classify":
        source = numbered_as(source, classes, arch.num_classes)
    return Batches.choose(source)
