"""How every command behaves: its help, ``--json``, ``-q`` and ``-v``, and what becomes of errors.

A command prints for people and returns what it found as JSON values; ``--json`` shows the latter. Only
click is imported here, so that ``--help`` answers at once.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import traceback
from contextlib import ExitStack, redirect_stdout, suppress
from typing import Any

import click
from click.core import ParameterSource

from mobileone_q.errors import FileError, MobileOneQError, OptionError
from mobileone_q.progress import heeding_interrupts, hidden_progress
from mobileone_q.streams import abandon_output, prepare_streams

INTERRUPTED = 130  # what shells report for a command that Ctrl-C ended
META = "mobileone_q."
COMMON = "Every command"

# The headings over a command's options, by the settings class that the options fill.
SECTIONS = {
    "BenchmarkOptions": "What to measure",
    "EvaluateOptions": "What to measure",
    "CalibrationOptions": "What to make",
    "NetworkOptions": "What to make",
    "InputOptions": "Weights and images",
    "Recipe": "Quantization",
    "EngineRequest": "What to build",
    "BuildOptions": "How to build",
    "TuneOptions": "What to seek",
    "QatOptions": "Images and output",
    "TrainOptions": "Images and output",
    "FineTuneSettings": "Fine-tuning",
    "EpochSettings": "Epochs",
    "TrainingSettings": "Training",
    "Augmentation": "Augmentation",
}


def _remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta[f"{META}{param.name}"] = value


def wants_json() -> bool:
    """Whether the command at work is to print JSON alone; what else it says belongs on standard error."""
    return bool(click.get_current_context().meta.get(f"{META}print_json"))


class JsonOption(click.Option):
    """``--json``, which tables in another form do not go with."""

    replaces = ("form",)


def _common_options(has_json: bool) -> list[click.Option]:
    words: dict[str, Any] = {"is_flag": True, "expose_value": False, "callback": _remember}
    options = [
        click.Option(["-q", "--quiet"], help="Print errors alone, and no progress.", **words),
        click.Option(["-v", "--verbose"], help="Show log messages, and where an error arose.", **words),
    ]
    if not has_json:
        options.append(JsonOption(["--json", "print_json"], help="JSON instead of text.", **words))
    return options


def _refuse_without_effect(ctx: click.Context) -> None:
    """Check that every option that was given has an effect; see :class:`mobileone_q.settings.Option`.

    A config file's value may lose its effect through what is typed: the command line wins.

    Raises:
        OptionError: an option has none.
    """
    known = {str(param.name): param for param in ctx.command.params}
    sources = {name: ctx.get_parameter_source(name) for name in known}
    typed = {name for name, source in sources.items() if source is ParameterSource.COMMANDLINE}
    given = typed | {name for name, source in sources.items() if source is ParameterSource.DEFAULT_MAP}
    for name in sorted(given):
        param, is_on, flag = known[name], bool(ctx.params.get(name, True)), _as_typed(known[name])
        for other in getattr(param, "replaces", ()):
            if is_on and (other in typed or (other in given and name not in typed)):
                raise OptionError(
                    f"{_as_typed(known[other])} has no effect beside {flag}; leave one of them out"
                )
        needed, _, wanted = getattr(param, "needs", "").partition("=")
        if is_on and needed in known and (name in typed or needed not in typed):
            value = ctx.params[needed]
            if value != wanted if wanted else not value:
                words = f"{_as_typed(known[needed])} {wanted}".strip()
                raise OptionError(f"{flag} has no effect without {words}; pass that too, or leave it out")


def _as_typed(param: click.Parameter) -> str:
    """``--option``, or ARGUMENT."""
    return (param.metavar or "").strip("[].") if isinstance(param, click.Argument) else param.opts[0]


class Command(click.Command):
    """A command with options in sections, and with those that every command has."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        has_json = any("--json" in param.opts for param in self.params)
        self.params += _common_options(has_json)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it returns is printed under ``--json``."""
        _refuse_without_effect(ctx)
        prints_json = wants_json()
        is_quiet, is_verbose = (bool(ctx.meta.get(f"{META}{name}")) for name in ("quiet", "verbose"))
        if is_verbose:
            logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
        prints_json_itself = bool(ctx.params.get("as_json"))
        with ExitStack() as stack:
            if is_quiet:
                stack.enter_context(hidden_progress())
            if prints_json or (is_quiet and not prints_json_itself):
                stack.enter_context(redirect_stdout(io.StringIO()))
            value = super().invoke(ctx)
        if prints_json:
            click.echo(json.dumps(value, indent=2))
        return value

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under the headings of :data:`SECTIONS`."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            # Usage and text name the arguments; newer versions of click would list them, without a word.
            if record is None or isinstance(param, click.Argument):
                continue
            own = SECTIONS.get(getattr(param, "section", ""), "Options")
            is_common = not param.expose_value and param.name != "config"
            sections.setdefault(COMMON if is_common else own, []).append(record)
        common = sections.pop(COMMON, [])
        for title, records in [*sections.items(), (COMMON, common)]:
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _refuse_lost_folder() -> None:
    """Check that the current folder is there; without one, torch ends the process when it is imported.

    Raises:
        FileError: it was deleted.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise FileError("the current folder was deleted; change to one that is there") from None


def _is_lack_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: in Python and NumPy, or in torch, which raises a RuntimeError."""
    return isinstance(error, MemoryError) or "not enough memory" in str(error)


class Group(click.Group):
    """Turns the project's errors into one line and exit code 1, and Ctrl-C into exit code 130."""

    command_class = Command
    group_class = type

    def main(self, *args: Any, **extra: Any) -> Any:
        prepare_streams()
        try:
            return super().main(*args, **extra)
        except OSError as error:  # printing raises it; files have names, and nearly all a FileError
            abandon_output()
            place = error.filename or "the output"
            with suppress(OSError):  # standard error may lead to the same full disk
                click.echo(f"error: cannot use {place}: {error.strerror or error}", err=True)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            _refuse_lost_folder()
            with heeding_interrupts():
                return super().invoke(ctx)
        except MobileOneQError as error:
            if ctx.meta.get(f"{META}verbose"):
                traceback.print_exc()
            click.echo(f"error: {error}", err=True)
            sys.exit(1)
        except (MemoryError, RuntimeError) as error:
            if not _is_lack_of_memory(error):
                raise
            click.echo(
                "error: there is not enough memory for this; ask for fewer or smaller inputs at once",
                err=True,
            )
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the whole first sentence of each; click would cut it."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, (command.help or "").split("\n\n")[0].replace("\n", " ")))
        with formatter.section("Commands"):
            formatter.write_dl(rows)
