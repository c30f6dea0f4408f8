"""What to calibrate and evaluate on: the user's weights and images, or the bundled sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobileone_q.architecture.spec import Architecture, Pair
from mobileone_q.architecture.variants import VARIANTS
from mobileone_q.data import sample
from mobileone_q.data.array_file import ArrayFile
from mobileone_q.data.batches import Batches
from mobileone_q.data.class_numbers import numbered_as
from mobileone_q.data.hugging_face import HuggingFaceSource, is_hugging_face
from mobileone_q.data.idx import is_idx_folder, read_split
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.data.settings import DEFAULT_IMAGES, InputOptions
from mobileone_q.data.shard_files import is_shards
from mobileone_q.data.shards import ShardSource
from mobileone_q.data.sources import Arrays, ImageArray, ImageFolder, PictureList, Source, as_array
from mobileone_q.errors import CheckpointError, DataError

ARRAYS = ".npz"


@dataclass(frozen=True)
class Inputs:
    """Weights, with a title for reports, inputs to calibrate on, and others to evaluate on.

    ``evaluation`` is None where no inputs are left for it. ``classes`` are names in the order of the
    labels, None where they are not known. ``is_sample`` says that all of it is the bundled sample.
    """

    title: str
    weights: Path
    calibration: Batches
    evaluation: Batches | None
    classes: Sequence[str] | None = None
    is_sample: bool = False

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What images go through; None for arrays, which come normalized."""
        return self.calibration.source.preprocessing

    def image_size(self, arch: Architecture) -> Pair:
        """(height, width) of the network's input, in pixels."""
        transform = self.preprocessing
        return (transform.crop, transform.crop) if transform else arch.image_size

    def names_for(self, arch: Architecture) -> Sequence[str] | None:
        """The class names, if there is one for each of the network's classes."""
        fits = self.classes is not None and len(self.classes) == arch.num_classes
        return self.classes if fits else None

    def numbered(self, classes: Sequence[str] | None, arch: Architecture) -> Inputs:
        """The same inputs with the class numbers of ``arch``; see :func:`numbered_as`."""
        if arch.task != "classify":
            return self

        def number(batches: Batches, warns: bool) -> Batches:
            source = numbered_as(batches.source, classes, arch.num_classes, warns=warns)
            return replace(batches, source=source)

        # What is not evaluated needs no labels, so there is nothing to warn of.
        calibration = number(self.calibration, warns=self.evaluation is None)
        evaluation = None if self.evaluation is None else number(self.evaluation, warns=True)
        return replace(self, calibration=calibration, evaluation=evaluation)

    @property
    def evaluated(self) -> Batches:
        """What accuracy is measured on: the calibration inputs where there are no others."""
        return self.evaluation or self.calibration


def choose_inputs(arch: Architecture, options: InputOptions) -> Inputs:
    """The inputs that a command's options name; see :class:`InputOptions`.

    Raises:
        CheckpointError: no weights are given, and none are bundled for these options.
        DataError: there are no images, fewer than asked for, or such as the network cannot take.
    """
    if options.weights is None:
        return _sample_inputs(arch, options)
    if options.data is None:
        raise DataError("no calibration images: pass --data FOLDER beside --weights")
    title = f"MobileOne-{arch.name.upper()}" if arch.name in VARIANTS else arch.name
    source = as_source(options.data, arch)
    calibration = draw(source, options.images, options.seed)
    if options.eval_data is None:
        evaluation = calibration.left_over()
    else:
        evaluation = Batches.choose(as_source(options.eval_data, arch))
        if arch.task == "classify":
            evaluation.refuse_labels_beyond(arch.num_classes)
    return Inputs(title, options.weights, calibration, evaluation, source.classes)


def _sample_inputs(arch: Architecture, options: InputOptions) -> Inputs:
    if arch.name != sample.ARCH or options.data or options.eval_data:
        raise CheckpointError(
            f"no weights for {arch.name}: pass --weights CHECKPOINT and --data FOLDER "
            f"(only `--arch {sample.ARCH}` with none of these options has a bundled sample)"
        )
    side = sample.PREPROCESSING.crop
    if options.image_size not in (None, side):
        raise DataError(f"the bundled sample's images have a side of {side} pixels; leave out --image-size")
    calibration = draw(sample_images("calibration"), options.images, options.seed)
    evaluation = Batches.choose(sample_images("evaluation"))
    return Inputs(sample.NAME, sample.WEIGHTS, calibration, evaluation, sample.CLASSES, is_sample=True)


def draw(source: Source, images: int | None, seed: int) -> Batches:
    """``images`` inputs drawn by ``seed``; with None, as many as there are, up to ``DEFAULT_IMAGES``."""
    return Batches.choose(source, min(DEFAULT_IMAGES, len(source)) if images is None else images, seed)


def as_source(images: object, arch: Architecture, preprocessing: Preprocessing | None = None) -> Source:
    """A source of what a user gave as images for ``arch``.

    Accepted are:

    - the path of a folder of images, of tar shards such as ``train-{000..099}.tar``, or of an ``.npz``
      with arrays ``x`` and, if known, ``y``
    - the name of a Hugging Face dataset, ``hf:NAME:SPLIT``
    - a sequence of PIL images
    - a floating-point array of normalized inputs, (N, C, H, W), or (N, C, L) for signals
    - a pair of either of the last two and its labels (N,)
    - a :class:`Source`, which is returned as it is

    ``preprocessing`` is for images, by default the official transform for the architecture's image
    size; arrays come normalized.

    Raises:
        DataError: none of these, empty, unreadable, or of a size that the architecture does not take.
    """
    if isinstance(images, Source):
        return _of_size(images, arch)
    labels = None
    if isinstance(images, tuple) and len(images) == 2 and not isinstance(images[0], Image.Image):
        images, labels = images
    if isinstance(images, str | Path):
        if labels is not None:
            raise DataError(f"{images} has labels of its own; give the path alone")
        path = Path(images)
        if path.suffix == ARRAYS:
            return _fitting(ArrayFile(path), arch)
        if is_shards(str(images)):
            classes = arch.num_classes if arch.task == "classify" else None
            return ShardSource(str(images), _transform(arch, preprocessing), classes=classes)
        if is_hugging_face(str(images)):
            return HuggingFaceSource(str(images), _transform(arch, preprocessing))
        return ImageFolder(path, _transform(arch, preprocessing))
    if _is_array(images):
        return _fitting(Arrays(_floating(as_array(images, "the images"), arch), labels), arch)
    if isinstance(images, Sequence) and all(isinstance(image, Image.Image) for image in images):
        return PictureList(images, labels, _transform(arch, preprocessing))
    raise DataError(f"cannot take {_kind(images)} as images; {_accepted(arch)}")


def takes_pictures(arch: Architecture) -> bool:
    """Whether the network's input is a square RGB image."""
    height, width = arch.image_size
    return height == width and arch.in_channels == 3


def certificate_images(data: Path | None, arch: Architecture) -> NDArray[np.float32] | None:
    """Two real inputs for a fusion certificate, (2, C, H, W): the first of ``data``, or of the sample.

    None without ``data`` where the sample does not fit: for a network that takes no square RGB image.

    Raises:
        DataError: ``data`` cannot be read, or does not fit the network.
    """
    if data is None:
        if not takes_pictures(arch):
            return None
        source: Source = sample_images("calibration", Preprocessing.for_size(arch.image_size[0]))
    else:
        source = as_source(data, arch)
    return Batches.choose(source).first(2)


def sample_images(split: str, preprocessing: Preprocessing = sample.PREPROCESSING) -> ImageArray:
    """The bundled ``calibration`` (500) or ``evaluation`` (2,000) images."""
    pixels, labels = sample.images(split)
    return ImageArray(f"{sample.NAME}, {split} images", pixels, labels, preprocessing, sample.CLASSES)


def labelled(data: Path | str, split: str, image_size: int | None, allow_http: bool = False) -> Batches:
    """All inputs of a folder, of tar shards, of an ``.npz``, of idx files or ``hf:NAME``, with their labels.

    ``split`` is ``train`` or ``test``, which idx files tell apart; ``image_size`` is for folders of
    images, 224 by default.

    Raises:
        DataError: there are none, or some have no label; or they come in another size than ``image_size``.
    """
    source: Source
    path = Path(data)
    if is_shards(str(data)):
        source = ShardSource(str(data), Preprocessing.for_size(image_size or 224), allow_http=allow_http)
    elif is_hugging_face(str(data)):
        source = HuggingFaceSource(str(data), Preprocessing.for_size(image_size or 224))
    elif path.suffix == ARRAYS:
        source = ArrayFile(path)
    elif is_idx_folder(path):
        source = read_split(path, split)
    else:
        source = ImageFolder(path, Preprocessing.for_size(image_size or 224))
    if image_size is not None and _size_of(source) != (image_size, image_size):
        raise DataError(f"{path} has inputs of size {_size_of(source)}, all alike; leave out --image-size")
    chosen = Batches.choose(source)
    if not chosen.is_labelled:
        raise DataError(f"{path} has inputs without a label; give one folder per class, or y in an .npz")
    return chosen


def _is_array(images: object) -> bool:
    """Whether NumPy reads this as one array; a PIL image would pass for one too."""
    return hasattr(images, "__array__") and not isinstance(images, Image.Image)


def _floating(x: NDArray, arch: Architecture) -> NDArray:
    if not np.issubdtype(x.dtype, np.floating):
        raise DataError(f"cannot take an array of {x.dtype}, which is not normalized; {_accepted(arch)}")
    return x


def _fitting(source: Arrays, arch: Architecture) -> Arrays:
    wanted = (arch.in_channels, *arch.image_size)
    if source.x.shape[1:] != wanted:
        raise DataError(
            f"{source.name} has inputs of shape {source.x.shape[1:]}, and {arch.name} takes {wanted}; "
            "give inputs of that shape"
        )
    if arch.task == "classify":
        Batches.choose(source).refuse_labels_beyond(arch.num_classes)
    return source


def _size_of(source: Source) -> Pair:
    """(height, width) of the inputs, in pixels; of a signal, its length and 1."""
    transform = source.preprocessing
    height, width = (transform.crop, transform.crop) if transform else source.read(0).shape[1:]
    return height, width


def _of_size(source: Source, arch: Architecture) -> Source:
    size = _size_of(source)
    if size != arch.image_size:
        raise DataError(
            f"{source.name} has inputs of size {size}, and {arch.name} takes {arch.image_size}; "
            "pass image_size where the weights are loaded, or inputs of that size"
        )
    return source


def _transform(arch: Architecture, preprocessing: Preprocessing | None) -> Preprocessing:
    """What images for ``arch`` go through."""
    if not takes_pictures(arch):
        raise DataError(
            f"{arch.name} takes {arch.in_channels} channels of {arch.image_size}, not square RGB images; "
            "pass --data FILE.npz with an array x of normalized inputs"
        )
    transform = preprocessing or Preprocessing.for_size(arch.image_size[0])
    if transform.crop != arch.image_size[0]:
        raise DataError(
            f"the preprocessing crops to {transform.crop} pixels, and {arch.name} takes "
            f"{arch.image_size[0]}; give one that crops to {arch.image_size[0]}"
        )
    return transform


def _kind(images: object) -> str:
    """What was given, in words."""
    if isinstance(images, Image.Image):
        return "a single PIL image"
    if isinstance(images, Sequence) and images:
        other = next(image for image in images if not isinstance(image, Image.Image))
        return f"a {type(images).__name__} of {type(other).__name__}"
    return f"an object of type {type(images).__name__}"


def _accepted(arch: Architecture) -> str:
    channels, (height, width) = arch.in_channels, arch.image_size
    return (
        "give a folder, an .npz, a sequence of PIL images, or normalized float32 arrays "
        f"(N, {channels}, {height}, {width})"
    )
