"""A network with its weights: :func:`load`, and :func:`gather` for what a command's options name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mobileone_q.architecture.registry import resolve_architecture
from mobileone_q.architecture.spec import Architecture, Pair
from mobileone_q.architecture.variants import VARIANTS
from mobileone_q.checkpoints.download import fetch, is_name
from mobileone_q.checkpoints.imagenet import names_of
from mobileone_q.checkpoints.load import Checkpoint, load_model, stored_image_size
from mobileone_q.data.imagenet import in_words
from mobileone_q.data.inputs import Inputs, choose_inputs
from mobileone_q.data.settings import InputOptions
from mobileone_q.errors import ArchitectureError
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.mobileone import MobileOne
from mobileone_q.settings import checks_arguments


@dataclass(frozen=True)
class Model:
    """A network with its weights: with training branches, or fused already.

    ``checkpoint`` says where the weights came from.
    """

    network: MobileOne | FusedModel
    checkpoint: Checkpoint

    @property
    def arch(self) -> Architecture:
        return self.network.arch

    @property
    def is_fused(self) -> bool:
        return isinstance(self.network, FusedModel)

    @property
    def description(self) -> str:
        """The checkpoint in words: layout, with branches or fused, number of classes."""
        return self.checkpoint.description

    def class_names(self, inputs: Inputs) -> tuple[str, ...] | None:
        """Class names that the inputs brought, else ImageNet-1k's for weights known to be trained on it."""
        brought = inputs.names_for(self.arch)
        return in_words(tuple(brought)) if brought else names_of(self.checkpoint)

    @checks_arguments
    def with_maps(self, out_indices: Sequence[int], has_head: bool = True) -> Model:
        """The network as a backbone; see :meth:`Architecture.with_maps`.

        Raises:
            ArchitectureError: there is no such stage.
        """
        arch = self.arch.with_maps(out_indices, has_head)
        network = type(self.network)(arch).eval()
        names = network.state_dict().keys()
        network.load_state_dict(
            {key: value for key, value in self.network.state_dict().items() if key in names}
        )
        return replace(self, network=network)

    @property
    def title(self) -> str:
        """The network's name for people, such as ``MobileOne-S0``."""
        return f"MobileOne-{self.arch.name.upper()}" if self.arch.name in VARIANTS else self.arch.name


def stages_of(text: str) -> tuple[int, ...]:
    """Numbers of stages from a text such as ``1,2,3``.

    Raises:
        ArchitectureError: it is not one.
    """
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ArchitectureError(
            f"--features takes stages such as 1,2,3, counted from 0, not {text!r}"
        ) from None


@checks_arguments
def load(weights: str | Path, arch: str, image_size: int | Pair | None = None) -> Model:
    """Read a MobileOne's weights.

    Args:
        weights: a checkpoint of Apple, timm, mmpretrain, jahongir7174 or this project, or a public
            name such as ``apple:s0``, which is downloaded once.
        arch: ``s0`` to ``s4``, a face variant such as ``s0-face-gdc``, or the path of a YAML file.
        image_size: side of the network's input in pixels; by default what the file says, or else
            the architecture.

    Raises:
        ArchitectureError: there is no such architecture.
        CheckpointError: the file is missing, damaged, unsafe, or holds other weights.

    Example:
        >>> import mobileone_q as mq
        >>> model = mq.load(mq.sample.WEIGHTS, arch="s0", image_size=32)
        >>> model.title, model.is_fused, model.arch.num_classes
        ('MobileOne-S0', False, 10)
    """
    path = fetch(str(weights)) if is_name(str(weights)) else Path(weights)
    network, checkpoint = load_model(path, arch, image_size)
    return Model(network, checkpoint)


def gather(arch: str, options: InputOptions) -> tuple[Model, Inputs]:
    """The model and the inputs that a command's options name; with neither, the bundled sample's.

    Raises:
        ArchitectureError, CheckpointError, DataError: options that cannot be used.
    """
    size = options.image_size or stored_image_size(options.weights)
    wanted = resolve_architecture(arch, image_size=size)
    inputs = choose_inputs(wanted, options)
    model = load(inputs.weights, arch, inputs.image_size(wanted))
    return model, inputs.numbered(model.class_names(inputs), model.arch)
