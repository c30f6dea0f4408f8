"""Settings whose field says everything once: default, bounds, and the help of its option.

A settings class is a frozen dataclass whose fields are made by :func:`setting`. The command line
makes its options from the fields (:mod:`mobileone_q.options`), so that a default, a bound or a
choice stands in one place and holds for Python and for the command line alike.

Nothing heavy is imported here: ``--help`` reads these classes.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

F = TypeVar("F", bound=Callable[..., Any])

MOST = 2**31 - 1  # of a number without a bound of its own: libraries in C take no larger ones
MOST_THREADS = 1024
MOST_BATCH = 4096
MOST_RUNS = 100_000  # timed runs, each of which is kept until the median is taken
MOST_PATH, MOST_NAME = 4095, 255  # bytes of a path and of each name in it, on Linux
MOST_ITEMS = 10_000  # of a sequence of plain values: ``range(10**9)`` would be looked through, and copied


@dataclass(frozen=True)
class Option:
    """How a field looks on the command line.

    ``flag`` is its name there, such as ``--range-method``; empty for the field's own name.
    ``low`` and ``high`` are inclusive bounds of a number, at most :data:`MOST`. ``choices`` are the words
    that a text may be.
    ``metavar`` names the value in the help.
    ``default_help`` says in words what happens without the option, where the default is None.
    ``is_required`` means that a value must be given.
    ``replaces`` names parameters of a command that have no effect beside this option, and ``needs`` the one
    without which this option has none; ``grids=both`` asks for a value of it. Who types such options
    together, or the one without the other, is told (:mod:`mobileone_q.commands`).
    """

    help: str
    flag: str = ""
    low: float | None = None
    high: float | None = None
    metavar: str | None = None
    default_help: str = ""
    is_required: bool = False
    choices: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    needs: str = ""


def setting(default: Any, help: str, **option: Any) -> Any:
    """A dataclass field with a default that the command line can set; see :class:`Option`."""
    return field(default=default, metadata={"option": Option(help, **option)})


def options_of(cls: type) -> dict[str, Option]:
    """The options of a settings class by field name, in the order of the fields."""
    return {each.name: each.metadata["option"] for each in fields(cls) if "option" in each.metadata}


def default_of(cls: type, name: str) -> Any:
    """The default of a field; None for a field without one."""
    found = next(each for each in fields(cls) if each.name == name)
    return None if found.default is MISSING else found.default


def hints_of(cls: type) -> dict[str, Any]:
    """The type of each field, ``X | None`` reduced to ``X``."""
    return {name: _without_none(hint) for name, hint in get_type_hints(cls).items()}


def mistakes(settings: Any) -> list[str]:
    """What cannot be by its type, bounds or choices, one entry per field: ``lr -1.0 (at least 0)``."""
    found = []
    options = options_of(type(settings))
    for name, hint in get_type_hints(type(settings)).items():
        value, option = getattr(settings, name), options.get(name)
        wanted = misfit(hint, value)
        if wanted:
            choose = "choose " * wanted.startswith("one of")
            found.append(f"{name} {value!r:.40} ({choose}{wanted})")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            if option and option.low is not None and value < option.low:
                found.append(f"{name} {value} (at least {option.low:g})")
            elif option and option.high is not None and value > option.high:
                found.append(f"{name} {value} (at most {option.high:g})")
            elif abs(value) > MOST:
                found.append(f"{name} {value} (at most {MOST:,})")
    return found


def misfit(hint: Any, value: Any) -> str:
    """What a value of the type ``hint`` is, in words, where ``value`` is none; empty where it is one.

    Of containers other than tuples and sequences nothing but their class is looked at.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        wanted = [misfit(part, value) for part in inner]
        return "" if "" in wanted else " or ".join(wanted)
    if origin is Literal:
        is_one = isinstance(value, str) and value in inner
        return "" if is_one else f"one of {', '.join(map(str, inner))}"
    if origin in (tuple, Sequence):
        described = f"a sequence, each {misfit(inner[0], object())}"
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            return described
        if len(value) > MOST_ITEMS:
            return f"at most {MOST_ITEMS:,} values"
        parts = inner[:1] * len(value) if origin is Sequence or inner[-1] is Ellipsis else inner
        fits = len(parts) == len(value) and not any(map(misfit, parts, value))
        return "" if fits else described
    if hint in _WORDS:
        word, kind = _WORDS[hint]
        is_wrong = isinstance(value, bool) is not (hint is bool) or not isinstance(value, kind)
        if is_wrong:
            return word
        if isinstance(value, (str, Path)) and not could_be_path(str(value)):
            return f"{word} without null characters, of at most {MOST_PATH:,} bytes, {MOST_NAME} in each name"
        return word if value != value else ""
    kind = origin or hint
    if isinstance(kind, type) and not isinstance(value, kind):
        return "None" if kind is type(None) else f"a {kind.__name__}"
    return ""


# How a type is called, and what passes for one: NumPy's numbers do.
_WORDS: dict[Any, tuple[str, type]] = {
    bool: ("True or False", bool),
    int: ("a whole number", Integral),
    float: ("a number", Real),
    str: ("a text", str),
    Path: ("a path", Path),
}


def could_be_path(text: str) -> bool:
    """Whether the system could have a file of that path; with any other, asking for it raises an error."""
    path = text.encode("utf-8", "surrogatepass")
    is_short = len(path) <= MOST_PATH and max(map(len, path.split(b"/"))) <= MOST_NAME
    return is_short and b"\0" not in path


def checks_arguments(function: F) -> F:
    """A decorator: arguments of other types than the annotations are refused before anything is done.

    The function raises a TypeError that names the argument and what it must be.
    """
    signature, hints = inspect.signature(function), dict[str, Any]()
    name_of_it = function.__qualname__.removesuffix(".__init__")  # ``Run.profile``, and a class by its name

    @functools.wraps(function)
    def checked(*args: Any, **more: Any) -> Any:
        if not hints:  # resolved at the first call: annotations may name what is imported later
            hints.update(get_type_hints(function))
        for name, value in signature.bind(*args, **more).arguments.items():
            is_plain = signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD
            wanted = misfit(hints[name], value) if is_plain and name in hints else ""
            if isinstance(value, Integral) and abs(int(value)) > MOST:
                wanted = f"at most {MOST:,}"
            if wanted:
                raise TypeError(f"{name_of_it}: {name} is {value!r:.40}, and must be {wanted}")
        return function(*args, **more)

    return cast("F", checked)


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        kept = [part for part in get_args(hint) if part is not type(None)]
        return kept[0] if len(kept) == 1 else hint
    return hint
