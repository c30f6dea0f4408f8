"""Values of command-line options that click has no type for. Only click is imported."""

from __future__ import annotations

import os
from typing import Any

import click
from click.shell_completion import CompletionItem

from mobileone_q.names import ARCHITECTURES, FACE_FORMS
from mobileone_q.settings import MOST, MOST_BATCH, could_be_path
from mobileone_q.suggestions import did_you_mean

LEAST_SIDE, MOST_SIDE = 16, 16384  # of a camera's frame, pixels
YAML_SUFFIXES = (".yaml", ".yml")
FACE_NAMES = "s0-face-gdc, s0-face-conv and so on"


class Place(click.Path):
    """A path that the system could have."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = os.fsdecode(value)
        if not could_be_path(text):
            self.fail(f"{text!r:.60} holds a null character, or is too long for a path", param, ctx)
        return super().convert(value, param, ctx)


class _Sized:
    """Refuses NaN, and numbers that are too large for libraries in C."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)  # type: ignore[misc]
        if not abs(number) <= MOST:
            self.fail(f"{str(value)[:40]} is not a number up to {MOST:,}.", param, ctx)  # type: ignore[attr-defined]
        return number


class Whole(_Sized, type(click.INT)):  # type: ignore[misc]
    """A whole number."""


class WholeRange(_Sized, click.IntRange):
    """A whole number within bounds."""

    name = "integer"  # in the help, which shows the bounds, and in errors


class Real(_Sized, type(click.FLOAT)):  # type: ignore[misc]
    """A number."""

    name = "number"


class RealRange(_Sized, click.FloatRange):
    """A number within bounds."""

    name = "number"


class Choice(click.Choice):
    """One of some words; a wrong one is answered with the word that was perhaps meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            meant = did_you_mean(str(value), map(str, self.choices))
            raise click.BadParameter(error.message.rstrip(".") + meant, ctx, param) from None


class ArchitectureParameter(click.ParamType):
    """s0 to s4, a face variant of one, or a YAML file."""

    name = "ARCH"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        base, _, variant = value.partition("-")
        faces = ("", "face", *(f"face-{form}" for form in FACE_FORMS))
        if value.endswith(YAML_SUFFIXES) or (base in ARCHITECTURES and variant in faces):
            return value
        self.fail(
            f"{value!r} is none of {', '.join(ARCHITECTURES)}, {FACE_NAMES}, nor a YAML file"
            + did_you_mean(value, ARCHITECTURES), param, ctx,
        )  # fmt: skip

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that begin with what was typed; else files."""
        faces = [f"{name}-face-{form}" for name in ARCHITECTURES for form in FACE_FORMS]
        names = [name for name in (*ARCHITECTURES, *faces) if name.startswith(incomplete)]
        return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="file")]


class BatchRange(click.ParamType):
    """``4`` is a fixed batch; ``1:4:8`` is the least, the typical and the largest batch."""

    name = "MIN:OPT:MAX"

    def convert(
        self, value: str | tuple[int, int, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int, int]:
        if isinstance(value, tuple):
            return value
        try:
            sizes = [int(size) for size in value.split(":")]
        except ValueError:
            sizes = []
        least, typical, most = sizes * 3 if len(sizes) == 1 else sizes if len(sizes) == 3 else (0, 0, 0)
        if not 1 <= least <= typical <= most <= MOST_BATCH:
            self.fail(
                f"{value!r} is neither N nor MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX <= {MOST_BATCH}",
                param,
                ctx,
            )
        return least, typical, most


class FrameSize(click.ParamType):
    """``480x640`` is a height and a width, pixels."""

    name = "HxW"

    def convert(
        self, value: str | tuple[int, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        height, _, width = value.partition("x")
        sides = [
            int(side) if side.isascii() and side.isdigit() and len(side) < 6 else 0
            for side in (height, width)
        ]
        if not all(LEAST_SIDE <= side <= MOST_SIDE for side in sides):
            self.fail(f"{value!r} is not HxW with sides of {LEAST_SIDE} to {MOST_SIDE} pixels", param, ctx)
        return sides[0], sides[1]


class EpochSchedule(click.ParamType):
    """``0:160,37:192`` is 160 from epoch 0 on and 192 from epoch 37 on."""

    name = "EPOCH:VALUE,..."

    def __init__(self, number: type[int] | type[float]) -> None:
        self.number = number

    def convert(
        self,
        value: str | tuple[tuple[int, float], ...],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[tuple[int, float], ...]:
        if isinstance(value, tuple):
            return value
        try:
            pairs = [part.split(":") for part in value.split(",")]
            return tuple((int(epoch), self.number(each)) for epoch, each in pairs)
        except ValueError:
            kind = "whole numbers" if self.number is int else "numbers"
            self.fail(f"{value!r} is not EPOCH:VALUE,EPOCH:VALUE with {kind}", param, ctx)
