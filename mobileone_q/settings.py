"""Settings whose field says everything once: default, bounds, and the help of its option.

A settings class is a frozen dataclass whose fields are made by :func:`setting`. The command line
makes its options from the fields (:mod:`mobileone_q.options`), so that a default, a bound or a
choice stands in one place and holds for Python and for the command line alike.

Nothing heavy is imported here: ``--help`` reads these classes.
"""

from __future__ import annotations

import types
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

MOST = 2**31 - 1  # of a number without a bound of its own: libraries in C take no larger ones
MOST_THREADS = 1024
MOST_BATCH = 4096
MOST_RUNS = 100_000  # timed runs, each of which is kept until the median is taken


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
    """What is out of range or not among the choices, one entry per field: ``lr -1.0 (at least 0)``."""
    found = []
    hints, options = hints_of(type(settings)), options_of(type(settings))
    for name, hint in hints.items():
        value = getattr(settings, name)
        if value is None:
            continue
        option = options.get(name)
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                found.append(f"{name} {value!r} (choose one of {', '.join(map(str, get_args(hint)))})")
        elif hint in (int, float):
            if not isinstance(value, (int, float)) or isinstance(value, bool) or value != value:
                found.append(f"{name} {value!r} (a number)")
            elif option and option.low is not None and value < option.low:
                found.append(f"{name} {value} (at least {option.low:g})")
            elif option and option.high is not None and value > option.high:
                found.append(f"{name} {value} (at most {option.high:g})")
            elif abs(value) > MOST:
                found.append(f"{name} {value} (at most {MOST:,})")
    return found


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        kept = [part for part in get_args(hint) if part is not type(None)]
        return kept[0] if len(kept) == 1 else hint
    return hint
