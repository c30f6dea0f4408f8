"""Command-line options, made from the settings that they set.

A command asks for a settings class with :func:`takes` and gets one filled instance of it. Help,
defaults, bounds and choices are those of the class's fields (:mod:`mobileone_q.settings`). Options
that belong to no settings class, such as ``--json``, stand here.

Only click is imported here, so that ``mobileone-q --help`` answers at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from mobileone_q.errors import ConfigError
from mobileone_q.names import ARCHITECTURES, FORMS
from mobileone_q.option_types import (
    FACE_NAMES,
    YAML_SUFFIXES,
    ArchitectureParameter,
    BatchRange,
    Choice,
    EpochSchedule,
    FrameSize,
    Place,
    Real,
    RealRange,
    Whole,
    WholeRange,
)
from mobileone_q.settings import Option, default_of, hints_of, options_of
from mobileone_q.suggestions import did_you_mean

FILE = Place(path_type=Path)
TYPED_ARCH = "mobileone_q.typed_arch"  # where click's context keeps it
_HERE = Path(__file__).parent
# A wheel installs configs/ inside this package; in a checkout, and an editable install, it is beside it.
BUNDLED = next((folder for folder in (_HERE / "configs", _HERE.parent / "configs") if folder.is_dir()), _HERE)
ARCH_HELP = f"MobileOne variant ({', '.join(ARCHITECTURES)}, or {FACE_NAMES}), or a YAML file of your own."

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class SectionedOption(click.Option):
    """An option that knows the settings class whose heading it stands under, and which others it excludes."""

    def __init__(
        self, *args: Any, section: str = "", replaces: tuple[str, ...] = (), needs: str = "", **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self.section, self.replaces, self.needs = section, replaces, needs

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """As click writes it; of a command that takes a recipe, an option may be required there instead."""
        record = super().get_help_record(ctx)
        if record is None or not any(isinstance(param, ConfigArgument) for param in ctx.command.params):
            return record
        return record[0], record[1].replace("[required]", "[required here or in CONFIG]")


def load_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make a YAML file's values the defaults of the command's options.

    Raises:
        ConfigError: the file cannot be used; everything wrong in it is named at once.
    """
    if path is not None:
        name = ctx.command.name or ""
        ctx.default_map = read_config(path, ctx.command.params, ctx.meta.get(TYPED_ARCH), name)


def read_config(
    path: Path, params: Sequence[click.Parameter], arch: str | None = None, command: str = ""
) -> dict[str, Any]:
    """Read ``option: value`` lines; dashes and underscores are the same.

    A file for several commands, such as the one that `tune` writes, has a mapping of such lines for each.
    Only that under the name ``command`` is read.

    A mapping ``variants`` of such lines by architecture says what differs for each. ``arch``, or else the
    file's own ``arch``, picks one.

    ``path`` may be the name of a bundled file: ``jetson`` is ``configs/jetson.yaml``, unless there is
    a file of that name.

    Raises:
        ConfigError: the file cannot be read, is not a mapping, has options that the command does not
            have, or values that are no plain ones; everything wrong is named at once.
    """
    from mobileone_q.yaml_files import read_yaml  # YAML is slow to import

    path = config_path(path)
    values = read_yaml(path, ConfigError, "--config") or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold `option: value` lines, not a {type(values).__name__}")
    known = {param.name: param for param in params if param.name and param.name != "config"}
    values = _with_variant(path, _of_command(path, values, command, known), arch)
    options = {str(key).replace("-", "_"): value for key, value in values.items()}
    wrong = sorted(options.keys() - known.keys())
    if wrong:
        guesses = (f" ({name}{meant})" for name in wrong if (meant := did_you_mean(name, known)))
        raise ConfigError(
            f"{path} has unknown options {', '.join(wrong)}{''.join(guesses)}; "
            f"choose from {', '.join(sorted(known))}"
        )
    for name, value in options.items():
        if isinstance(known[name].type, EpochSchedule) and isinstance(value, dict):
            options[name] = ",".join(f"{epoch}:{number}" for epoch, number in value.items())
    wrong = [name for name, value in options.items() if not _fits(value, known[name])]
    if wrong:
        raise ConfigError(
            f"{path}: {', '.join(wrong)} must each be one number or word, true or false for a flag"
            " (a list of them where an option is repeatable)"
        )
    return {name: _as_typed(value) for name, value in options.items()}


def _of_command(path: Path, values: dict[Any, Any], command: str, known: Collection[str]) -> dict[Any, Any]:
    """The lines for one command of a file for several; those of any other file as they are.

    Raises:
        ConfigError: the file is for other commands.
    """
    has_options = any(str(key).replace("-", "_") in {*known, "variants"} for key in values)
    if not values or has_options or not all(isinstance(value, dict) for value in values.values()):
        return values
    if command not in values:
        raise ConfigError(f"{path} has nothing for {command}; it has {', '.join(map(str, values))}")
    found: dict[Any, Any] = values[command]
    return found


def _with_variant(path: Path, values: dict[Any, Any], arch: str | None) -> dict[Any, Any]:
    """The lines of a file with those of the variant that is asked for.

    Raises:
        ConfigError: the file has no such variant, or the variant is not a mapping.
    """
    variants = values.get("variants")
    if variants is None:
        return values
    arch = arch or (str(values["arch"]) if "arch" in values else None)
    if not isinstance(variants, dict) or not isinstance(variants.get(arch), dict):
        names = ", ".join(map(str, variants)) if isinstance(variants, dict) else "none"
        lacks = f"no variant for --arch {arch}" if arch else "variants; pick one with --arch"
        raise ConfigError(f"{path} has {lacks}; its variants are {names}")
    common = {key: value for key, value in values.items() if key != "variants"}
    return {**common, "arch": arch, **variants[arch]}


class _TypedArch:
    """Notes a typed ``--arch`` before the config file is read, which may have a variant for it."""

    def handle_parse_result(self, ctx: click.Context, opts: Any, args: Any) -> Any:
        ctx.meta[TYPED_ARCH] = opts.get("arch")
        return super().handle_parse_result(ctx, opts, args)  # type: ignore[misc]


class ConfigOption(_TypedArch, click.Option):
    """``--config``."""


class ConfigArgument(_TypedArch, click.Argument):
    """CONFIG."""


def config_path(path: Path) -> Path:
    if path.suffix in YAML_SUFFIXES or path.is_file():
        return path
    bundled = {file.stem: file for file in sorted(BUNDLED.glob("*.yaml"))}
    if str(path) not in bundled:
        guess = did_you_mean(str(path), bundled)
        raise ConfigError(
            f"{path} is neither a file nor a bundled config{guess}; choose from {', '.join(bundled)}"
        )
    return bundled[str(path)]


def _fits(value: Any, param: click.Parameter) -> bool:
    """Whether an option can have a value of this kind at all."""
    if isinstance(value, bool) and not getattr(param, "is_flag", False):
        return False  # a word such as `on`, which YAML reads as true, must stand in quotes
    return _is_plain(value, param.multiple)


def _is_plain(value: Any, several: bool) -> bool:
    if several and isinstance(value, list):
        return all(_is_plain(each, several=False) for each in value)
    return isinstance(value, (bool, int, float, str)) and "\0" not in str(value)


def _as_typed(value: Any) -> Any:
    """As it would be typed on the command line, where click checks it; flags stay true or false."""
    if isinstance(value, bool):
        return value
    return [_as_typed(each) for each in value] if isinstance(value, list) else str(value)


def fetch_weights(_: click.Context, __: click.Parameter, weights: Path | None) -> Path | None:
    """Download public weights given by name; a path stays as it is."""
    if weights is None:
        return None
    from mobileone_q.checkpoints.download import fetch, is_name

    return fetch(str(weights)) if is_name(str(weights)) else weights


RUN = click.argument("run_path", type=FILE, required=False, metavar="[RUN]")
FOLDER = click.argument(
    "folder", type=Place(path_type=Path, file_okay=False), default=Path("runs"), metavar="[FOLDER]"
)
RUNS = click.argument("run_paths", type=FILE, nargs=-1, metavar="[RUN]...")
FORM = click.option(
    "--format", "form", type=click.Choice(FORMS), default="table", show_default=True, help="How to print it."
)
CONFIG = click.option(
    "--config", cls=ConfigOption, type=FILE, is_eager=True, expose_value=False, callback=load_config,
    help="YAML file of options, or a bundled one's name, such as jetson; the command line wins.",
)  # fmt: skip
CONFIG_ARGUMENT = click.argument(
    "config", cls=ConfigArgument, type=FILE, is_eager=True, expose_value=False, callback=load_config
)


def takes(cls: type, name: str, *, defaults: Any = None) -> Decorator:
    """A decorator that adds the options of a settings class and passes one instance as ``name``.

    ``defaults`` is an instance whose values stand in for the class's defaults. Two classes of one command may
    share an option: both get its value.
    """
    offered = options_of(cls)
    hints = hints_of(cls)

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        declared = list(getattr(command, "__click_params__", ()))
        shared = {parameter.name for parameter in declared}

        @functools.wraps(command)
        def with_settings(*args: Any, **kwargs: Any) -> Any:
            values = {key: kwargs[key] for key in offered}
            start = cls() if defaults is None else defaults
            kept = {key: value for key, value in kwargs.items() if key not in offered or key in shared}
            # Built in one go, so that the class can name every mistake at once.
            return command(*args, **kept, **{name: replace(start, **values)})

        filled: Callable[..., Any] = with_settings
        filled.__click_params__ = declared  # type: ignore[attr-defined]
        for key in reversed(offered):
            if key not in shared:
                filled = _click_option(cls, key, offered[key], hints[key], defaults)(filled)
        return filled

    return add


def _click_option(cls: type, key: str, option: Option, hint: Any, defaults: Any) -> Decorator:
    default = default_of(cls, key) if defaults is None else getattr(defaults, key)
    help_text = option.help or ARCH_HELP
    if option.default_help and default is None:
        help_text += f"  [default: {option.default_help}]"
    words: dict[str, Any] = {"help": help_text, "cls": SectionedOption, "section": cls.__name__}
    words |= {"replaces": option.replaces, "needs": option.needs}
    if option.is_required:
        words["required"] = True
    else:
        words |= {"default": default, "show_default": default not in (None, (), "")}
    if option.metavar:
        words["metavar"] = option.metavar
    flag = option.flag or f"--{key.replace('_', '-')}"
    if hint is bool:
        off = f"--no-{flag.removeprefix('--')}"
        return click.option(flag if default is False else f"{flag}/{off}", key, is_flag=True, **words)
    if get_origin(hint) is tuple:
        item, *rest = get_args(hint)
        if rest == [Ellipsis] and get_origin(item) is tuple:
            return click.option(flag, key, type=EpochSchedule(get_args(item)[1]), **words)
        if rest == [Ellipsis]:
            return click.option(flag, key, type=_click_type(key, item, option), multiple=True, **words)
        if rest == [int]:
            return click.option(flag, key, type=FrameSize(), **words)
        words["default"] = ":".join(map(str, default))
        return click.option(flag, key, type=BatchRange(), **words)
    if key == "weights":
        words["callback"] = fetch_weights
    return click.option(flag, key, type=_click_type(key, hint, option), **words)


def _click_type(key: str, hint: Any, option: Option) -> Any:
    if get_origin(hint) is Literal or option.choices:
        return Choice(option.choices or get_args(hint))
    if key == "arch":
        return ArchitectureParameter()
    if hint is Path:
        return FILE
    if hint in (int, float) and option.low is None and option.high is None:
        return Whole() if hint is int else Real()
    if hint in (int, float):
        kind = WholeRange if hint is int else RealRange
        low = None if option.low is None else hint(option.low)
        high = None if option.high is None else hint(option.high)
        return kind(low, high)
    return hint
