"""Reading YAML files that users write, with errors in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

# What PyYAML's safe loader raises besides its own errors: for text that is not UTF-8, for tagged
# scalars that it cannot convert (``!!bool maybe``, ``!!int ''``, ``2020-13-01``), and for deep nesting.
MAX_BYTES = 1 << 20
MAX_BITS = 64  # of a whole number; Python cannot even print one of many thousands, which hexadecimal allows
_BAD_VALUES = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError)


class _Loader(yaml.SafeLoader):
    """The safe loader, which refuses whole numbers that no option could take."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value: int = super().construct_yaml_int(node)
        if value.bit_length() > MAX_BITS:
            raise ValueError(f"a number of {value.bit_length()} bits in line {node.start_mark.line + 1}")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


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
