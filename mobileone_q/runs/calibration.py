"""From a model and images to an INT8 network: :func:`calibrate`.

The commands `calibrate` and `sensitivity` are made of these functions, and so is the public face of
the package.
"""

from __future__ import annotations

import time
from dataclasses import fields, replace

from calibrate.images import load_all
from calibrate.mixed_precision import FloatBlock, calibrate_within
from calibrate.pipeline import fit, progress_steps
from calibrate.recipe import Recipe
from calibrate.sensitivity import BlockSensitivity, rank_blocks
from mobileone_q import engines
from mobileone_q.data import sample
from mobileone_q.data.batches import Batches
from mobileone_q.data.inputs import Inputs, as_source, draw, sample_images
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.errors import CalibrationError
from mobileone_q.models.certificate import certify
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.names import DLA_TARGETS, Target
from mobileone_q.progress import progress as show_progress
from mobileone_q.progress import progress_if
from mobileone_q.report.schema import BlockCost, Seconds, Sensitivity
from mobileone_q.runs.model import Model
from mobileone_q.runs.result import Result
from mobileone_q.runs.settings import TargetChoice
from mobileone_q.settings import checks_arguments

CERTIFICATE_IMAGES = 2
SENSITIVITY_IMAGES = 100
REPORTED_IMAGES = 32  # of `calibrate --sensitivity`: the order of blocks by KL needs few
COST_FIELDS = tuple(field.name for field in fields(BlockCost))

__all__ = ["Recipe", "calibrate"]


@checks_arguments
def calibrate(
    model: Model,
    images: object,
    *,
    target: TargetChoice = "auto",
    recipe: Recipe | None = None,
    seed: int = 0,
    count: int | None = None,
    preprocessing: Preprocessing | None = None,
    progress: bool = False,
) -> Result:
    """Fuse a model's branches and quantize it to INT8 on a few images; labels are not used.

    Args:
        model: from :func:`load`; it is left as it was.
        images: the path of a folder of images or of an ``.npz`` of arrays, a sequence of PIL
            images, or normalized float32 arrays (N, C, H, W).
        target: whose integer grids to use. ``auto`` is the recipe's target, or without a recipe
            TensorRT's where TensorRT and a GPU are, and ONNX Runtime's elsewhere.
        recipe: the settings; by default those of the command `calibrate`.
        seed: decides which images are drawn.
        count: how many images to draw; by default as many as there are, up to 200.
        preprocessing: how images become inputs; by default resize, center crop and ImageNet's mean
            and standard deviation, as Apple evaluates MobileOne. Arrays come normalized.
        progress: whether to show progress on standard error.

    Raises:
        CalibrationError: settings that cannot be used, or activations that are not finite.
        DataError: images that cannot be used.

    Example:
        >>> import mobileone_q as mq
        >>> model = mq.load(mq.sample.WEIGHTS, arch="s0", image_size=32)
        >>> result = mq.calibrate(model, mq.sample_images("calibration"), target="tensorrt", count=16)
        >>> result.quantized.target, len(result.inputs.calibration)
        ('tensorrt', 16)
    """
    settled = replace(recipe, target=target) if recipe and target != "auto" else recipe
    if isinstance(images, Batches):
        calibration = images
    else:
        calibration = draw(as_source(images, model.arch, preprocessing), count, seed)
    classes = calibration.source.classes
    is_sample = (
        model.checkpoint.path == sample.WEIGHTS
        and calibration.source.name == sample_images("calibration").name
    )
    title = sample.NAME if is_sample else model.title
    inputs = Inputs(title, model.checkpoint.path, calibration, None, classes, is_sample)
    settled = settled or Recipe(target=settled_target(target))
    return calibrate_inputs(model, inputs, settled, seed, progress=progress)


def calibrate_inputs(
    model: Model,
    inputs: Inputs,
    recipe: Recipe,
    seed: int = 0,
    max_drop_pts: float | None = None,
    plain_within: float | None = None,
    *,
    with_sensitivity: bool = False,
    progress: bool = False,
) -> Result:
    """As :func:`calibrate`, on inputs that are already chosen; ``seed`` is only recorded.

    ``plain_within`` asks for a second network, on plain grids, and is the largest KL, in nats, at which
    a device may choose one of the two. ``with_sensitivity`` also measures what quantizing each block
    alone costs, for the report.

    Raises:
        CalibrationError: ``with_sensitivity`` beside ``max_drop_pts``; a second network for another
            target than tensorrt, or of a network without classes, which has no KL; or see
            :func:`calibrate`. Or a backbone for a DLA.
    """
    if with_sensitivity and max_drop_pts is not None:
        raise CalibrationError("--sensitivity does not go with --max-drop; make a run for each")
    if model.arch.maps and recipe.target in DLA_TARGETS:
        raise CalibrationError(f"a backbone cannot be for {recipe.target}; use --target tensorrt")
    plain_recipe = None
    if plain_within is not None:
        plain_recipe = replace(recipe, activation_grids="plain")
        if model.arch.task != "classify":
            raise CalibrationError(
                f"{model.arch.name} has no classes, so the two graphs of --grids both cannot be compared by "
                "KL; choose --grids saturating or plain"
            )
    started = time.perf_counter()
    fused = fuse_branches(model.network)
    fuse_s = time.perf_counter() - started
    certificate = certify(model.network, inputs.calibration.first(CERTIFICATE_IMAGES))
    certificate.judge()
    started = time.perf_counter()
    kept: list[FloatBlock] = []
    equalized = None
    if max_drop_pts is None:
        total = progress_steps(recipe, fused, len(inputs.calibration))
        with progress_if(progress, "calibrating", total) as advance:
            equalized, quantized = fit(fused, inputs.calibration, recipe, advance)
    else:
        say = print if progress else _quiet
        quantized, kept = calibrate_within(
            max_drop_pts, fused, inputs.calibration, inputs.evaluated, recipe, say
        )
    plain = None
    if plain_recipe is not None:
        plain_recipe = replace(plain_recipe, keep_float=quantized.keep_float)
        total = progress_steps(plain_recipe, fused, len(inputs.calibration))
        with progress_if(progress, "calibrating on plain grids", total) as advance:
            _, plain = fit(fused, inputs.calibration, plain_recipe, advance)
    seconds = Seconds(fuse=fuse_s, calibrate=time.perf_counter() - started)
    sensitivity = None
    if with_sensitivity and equalized is not None:
        ranking, images = _ranked(model, equalized, quantized, inputs, REPORTED_IMAGES, progress)
        costs = ({key: getattr(block, key) for key in COST_FIELDS} for block in ranking)
        sensitivity = Sensitivity(images, tuple(BlockCost(**cost) for cost in costs))
    return Result(
        model, fused, certificate, quantized, inputs, recipe, seed, tuple(kept), max_drop_pts, seconds,
        sensitivity, plain, plain_within,
    )  # fmt: skip


def settled_target(target: TargetChoice) -> Target:
    """The target that ``auto`` stands for: TensorRT where it and a GPU are, else ONNX Runtime."""
    if target != "auto":
        return target
    return "tensorrt" if engines.best_backend() == "tensorrt" else "onnxruntime"


def block_sensitivity(
    model: Model, inputs: Inputs, recipe: Recipe, most_images: int
) -> tuple[list[BlockSensitivity], int]:
    """What quantizing each block alone costs, the costliest first, and on how many images."""
    fused = fuse_branches(model.network)
    total = progress_steps(recipe, fused, len(inputs.calibration))
    with show_progress("calibrating", total) as advance:
        equalized, quantized = fit(fused, inputs.calibration, recipe, advance)
    return _ranked(model, equalized, quantized, inputs, most_images, True)


def _ranked(
    model: Model,
    equalized: FusedModel,
    quantized: QuantizedModel,
    inputs: Inputs,
    most_images: int,
    progress: bool,
) -> tuple[list[BlockSensitivity], int]:
    """The ranking of blocks, and on how many images."""
    images, labels = load_all(inputs.evaluated.sample(most_images))
    original = model.network if isinstance(model.network, MobileOne) else None
    with progress_if(progress, "measuring blocks", len(equalized.arch.blocks)) as advance:
        return rank_blocks(equalized, quantized, images, labels, original, advance), len(labels)


def _quiet(line: str) -> None:
    """Says nothing."""
