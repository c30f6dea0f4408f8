"""What the input of a graph takes: a normalized float tensor, or the pixels of a camera.

Nothing heavy is imported here: engines, exports and the command line all read this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mobileone_q.errors import ExportError
from mobileone_q.names import ChannelOrder, InputKind

DTYPES: dict[InputKind, str] = {"float": "float32", "uint8": "uint8"}


@dataclass(frozen=True)
class InputForm:
    """The type and layout of a graph's tensor ``input``.

    Attributes:
        kind: ``float`` is float32 (N, C, H, W), normalized. ``uint8`` is uint8 (N, H, W, 3), the pixels
            themselves; the graph normalizes them.
        channel_order: the order of the last axis of pixels.
        camera_size: (height, width) of the frames that the graph scales and crops; None where pixels
            come in the network's size.
    """

    kind: InputKind = "float"
    channel_order: ChannelOrder = "rgb"
    camera_size: tuple[int, int] | None = None

    @property
    def is_pixels(self) -> bool:
        """Whether the graph takes uint8 pixels."""
        return self.kind == "uint8"

    @property
    def suffix(self) -> str:
        """What tells the file of such a graph from that of another form: ``-uint8-bgr-480x640``."""
        if not self.is_pixels:
            return f"-{self.kind}"
        size = f"-{size_in_words(self.camera_size)}" if self.camera_size else ""
        return f"-{self.kind}-{self.channel_order}{size}"

    def shape(self, channels: int, image_size: tuple[int, int]) -> tuple[int, int, int]:
        """The shape of one input without the batch, for a network of so many channels and that size."""
        if not self.is_pixels:
            return (channels, *image_size)
        return (*(self.camera_size or image_size), channels)

    def describe(self) -> str:
        """The form in a few words."""
        if not self.is_pixels:
            return "normalized float32, NCHW"
        frames = f", frames of {size_in_words(self.camera_size)}" if self.camera_size else ""
        return f"uint8 {self.channel_order.upper()} pixels, NHWC{frames}"

    def to_dict(self) -> dict[str, Any]:
        """The form as a graph's metadata holds it."""
        if not self.is_pixels:
            return {"dtype": "float32", "layout": "NCHW"}
        facts = {"dtype": "uint8", "layout": "NHWC", "channels": self.channel_order.upper()}
        return facts | ({"camera_size": list(self.camera_size)} if self.camera_size else {})

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> InputForm:
        """The form that :meth:`to_dict` described.

        Raises:
            ValueError: the facts describe no form of this version.
        """
        kinds: dict[str, InputKind] = {dtype: kind for kind, dtype in DTYPES.items()}
        orders: dict[str, ChannelOrder] = {"RGB": "rgb", "BGR": "bgr"}
        try:
            height, width = facts.get("camera_size") or (0, 0)
            size = (int(height), int(width)) if height and width else None
            form = cls(kinds[facts["dtype"]], orders[facts.get("channels", "RGB")], size)
        except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise ValueError(f"unknown form of input {facts!r}") from error
        if form.to_dict() != dict(facts):
            raise ValueError(f"unknown form of input {facts!r}")
        return form


FLOAT_INPUT = InputForm()


def settled_form(
    kind: InputKind, channel_order: ChannelOrder | None, camera_size: tuple[int, int] | None = None
) -> InputForm:
    """The form that options ask for.

    Raises:
        ExportError: an order of channels or a camera's size for a graph that takes no pixels.
    """
    if kind != "uint8" and (channel_order == "bgr" or camera_size):
        wrong = "--camera-size" if camera_size else "--channel-order bgr"
        raise ExportError(f"{wrong} is for graphs that take pixels; pass --input uint8 too")
    return InputForm(kind, channel_order or "rgb", camera_size)


def size_in_words(size: tuple[int, int] | None) -> str:
    """``480x640``: height, then width."""
    return "x".join(map(str, size or ()))
