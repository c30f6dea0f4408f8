"""Reading YAML files that users write, with errors in one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 18  # PyYAML reads about 100 kB a second
MAX_BITS = 64  # of a whole number; Python cannot even print one of many thousands, which hexadecimal allows
# What PyYAML's safe loader raises besides its own errors: for text that is not UTF-8, for tagged
# scalars that it cannot convert (``!!bool maybe``, ``!!int ''``, ``2020-13-01``, an endless number), and for
# deep nesting.
_BAD_VALUES = (yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError)


class _Loader(yaml.SafeLoader):
    """The safe loader, which refuses what would be taken for something else than was meant.

    Those are names that stand twice, and ``010``, which is 8. ``1:30`` stays text, as YAML 1.2 has it; the
    safe loader would make it 90. Whole numbers that no option could take are refused too.
    """

    def construct_whole(self, node: yaml.ScalarNode) -> int | str:
        if ":" in node.value:
            return str(node.value)
        if re.fullmatch(r"[-+]?0[0-9_]+", node.value):
            raise ValueError(f"{node.value} in line {_line(node)} begins with 0, which YAML reads as octal")
        value: int = super().construct_yaml_int(node)
        if value.bit_length() > MAX_BITS:
            raise ValueError(f"a number of {value.bit_length()} bits in line {_line(node)}")
        return value

    def construct_real(self, node: yaml.ScalarNode) -> float | str:
        return str(node.value) if ":" in node.value else super().construct_yaml_float(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = set()
        for name, _ in node.value:
            if isinstance(name, yaml.ScalarNode) and name.tag != MERGE:
                if name.value in names:
                    raise ValueError(f"{name.value} stands twice, the second time in line {_line(name)}")
                names.add(name.value)
        return dict(super().construct_mapping(node, deep))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


MERGE = "tag:yaml.org,2002:merge"  # `<<`
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_real)


def read_yaml(path: Path, failure: Callable[[str], Exception], option: str) -> Any:
    """Read a YAML file with the safe loader, which makes plain values alone.

    ``failure`` makes the exception to raise from its message, such as ``ConfigError``. ``option`` is
    the command-line option that named the file, such as ``--config``; messages mention it.

    Raises:
        failure: the file cannot be read, is not YAML, or is nested too deeply.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is not a regular file")  # a FIFO or a device could be read for ever
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
        return yaml.load(content.decode("utf-8"), _Loader)
    except OSError as error:
        raise failure(f"cannot read {path}: {error.strerror or error}; check {option}") from error
    except RecursionError:
        raise failure(f"{path} is nested too deeply; check {option}") from None
    except _BAD_VALUES as error:
        reason = " ".join(str(error).split())
        raise failure(f"{path} is not valid YAML: {reason}; check {option}") from None
