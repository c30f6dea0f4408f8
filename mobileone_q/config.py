"""Command options from a YAML file."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Any

from mobileone_q.errors import ConfigError
from mobileone_q.yaml_files import read_yaml


def read_config(path: Path, known: Set[str]) -> dict[str, Any]:
    """Read ``option: value`` lines; dashes and underscores are the same.

    Raises:
        ConfigError: the file cannot be read, is not a mapping, or has options that the command does
            not have; all unknown ones are listed at once.
    """
    values = read_yaml(path, ConfigError, "--config") or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold `option: value` lines, not a {type(values).__name__}")
    options = {str(key).replace("-", "_"): value for key, value in values.items()}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise ConfigError(
            f"{path} has unknown options {', '.join(unknown)}; choose from {', '.join(sorted(known))}"
        )
    return options
