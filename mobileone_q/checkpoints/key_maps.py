"""Key maps: what other codebases call the tensors of a MobileOne.

A key map names the same tensors in another way: where the stem, the layers of a stage and the head
stand, and what the parts of a layer are called. Here a block is ``stage1.1.pw``; elsewhere the layers
of a stage are numbered in a row, depthwise and pointwise in turn, so that it is ``stage1.3`` or
``stages.0.3``. The names come from apple/ml-mobileone, huggingface/pytorch-image-models
(``byobnet``), open-mmlab/mmpretrain and jahongir7174/MobileOne.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mobileone_q.names import KeyMapName

HALVES = ("dw", "pw")  # of a unit: the depthwise block and the pointwise block


@dataclass(frozen=True)
class KeyMap:
    """The names that one codebase uses.

    ``stage`` holds ``{}`` for the number of the stage, which begins at ``first_stage``. ``parts`` pairs
    prefixes of a layer's keys, theirs before ours; ours is empty for the fused convolution. ``norm`` is
    what a branch calls its batch norm.
    """

    name: KeyMapName
    stem: str
    stage: str
    first_stage: int
    head: str
    parts: tuple[tuple[str, str], ...]
    norm: str = "bn"

    @property
    def fused_part(self) -> str:
        """Their name of a layer's fused convolution."""
        return next(theirs for theirs, ours in self.parts if not ours)

    def matches(self, keys: Iterable[str]) -> bool:
        """Whether the kernel of the stem, with branches or fused, is among the keys."""
        branch = next(theirs for theirs, ours in self.parts if ours == "kxk")
        wanted = {f"{self.stem}.{branch}.0.conv.weight", f"{self.stem}.{self.fused_part}.weight"}
        return not wanted.isdisjoint(keys)

    def to_own(self, key: str) -> str:
        """Translate a key of theirs into this project's; an unknown key comes back as it is."""
        if key.startswith(f"{self.head}."):
            return f"head.{key[len(self.head) + 1 :]}"
        if key.startswith(f"{self.stem}."):
            return _join("stem", self._part_to_own(key[len(self.stem) + 1 :]))
        pattern = re.escape(self.stage).replace(r"\{\}", r"(\d+)") + r"\.(\d+)\.(.+)"
        match = re.fullmatch(pattern, key)
        if match is None:
            return key
        unit, half = divmod(int(match[2]), 2)
        stage = int(match[1]) - self.first_stage + 1
        return _join(f"stage{stage}.{unit}.{HALVES[half]}", self._part_to_own(match[3]))

    def from_own(self, key: str) -> str:
        """Translate a key of this project's into theirs."""
        block, part = _split_block(key)
        if block == "head":
            return f"{self.head}.{part}"
        if block == "stem":
            return _join(self.stem, self._part_from_own(part))
        stage, unit, half = block.split(".")
        layer = 2 * int(unit) + HALVES.index(half)
        where = self.stage.format(int(stage.removeprefix("stage")) - 1 + self.first_stage)
        return _join(f"{where}.{layer}", self._part_from_own(part))

    def _part_to_own(self, part: str) -> str:
        for theirs, ours in self.parts:
            if part.startswith(f"{theirs}."):
                return _join(ours, part[len(theirs) + 1 :].replace(f"{self.norm}.", "bn."))
        return part

    def _part_from_own(self, part: str) -> str:
        for theirs, ours in self.parts:
            if ours and part.startswith(f"{ours}."):
                return _join(theirs, part[len(ours) + 1 :].replace("bn.", f"{self.norm}."))
        return _join(self.fused_part, part)


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _split_block(key: str) -> tuple[str, str]:
    """Split ``stage1.0.dw.kxk.0.bn.bias`` into ``stage1.0.dw`` and ``kxk.0.bn.bias``."""
    parts = key.split(".")
    depth = 3 if parts[0].startswith("stage") else 1
    return ".".join(parts[:depth]), ".".join(parts[depth:])


_ALL = (
    KeyMap(
        "apple",
        stem="stage0",
        stage="stage{}",
        first_stage=1,
        head="linear",
        parts=(
            ("rbr_conv", "kxk"),
            ("rbr_scale", "scale"),
            ("rbr_skip", "identity"),
            ("reparam_conv", ""),
            ("se", "se"),
        ),
    ),
    KeyMap(
        "timm",
        stem="stem",
        stage="stages.{}",
        first_stage=0,
        head="head.fc",
        parts=(
            ("conv_kxk", "kxk"),
            ("conv_scale", "scale"),
            ("identity", "identity"),
            ("reparam_conv", ""),
            ("attn.fc1", "se.reduce"),
            ("attn.fc2", "se.expand"),
        ),
    ),
    KeyMap(
        "mmpretrain",
        stem="backbone.stage0",
        stage="backbone.stage{}",
        first_stage=1,
        head="head.fc",
        parts=(
            ("branch_conv_list", "kxk"),
            ("branch_scale", "scale"),
            ("branch_norm", "identity"),
            ("branch_reparam", ""),
            ("se.conv1.conv", "se.reduce"),
            ("se.conv2.conv", "se.expand"),
        ),
        norm="norm",
    ),
    KeyMap(
        "jahongir7174",
        stem="p1.0",
        stage="p{}",
        first_stage=2,
        head="fc.2",
        parts=(
            ("conv1", "kxk"),
            ("conv2", "scale"),
            ("identity", "identity"),
            ("conv", ""),
            ("se.se.1", "se.reduce"),
            ("se.se.3", "se.expand"),
        ),
        norm="norm",
    ),
)
KEY_MAPS: dict[KeyMapName, KeyMap] = {key_map.name: key_map for key_map in _ALL}
