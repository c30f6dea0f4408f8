"""Command options from a YAML file."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Any

import yaml

from mobileone_q.errors import ConfigError


def read_config(path: Path, known: Set[str]) -> dict[str, Any]:
    """Read ``option: value`` lines; dashes and underscores are the same.

    Raises:
        ConfigError: unreadable, not a mapping, or with options the command does not have; all
            unknown ones are listed at once.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; check --config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {reason}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold `option: value` lines, not a {type(values).__name__}")
    options = {str(key).replace("-", "_"): value for key, value in values.items()}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise ConfigError(
            f"{path} has unknown options {', '.join(unknown)}; choose from {', '.join(sorted(known))}"
        )
    return options


def config_path(path: Path) -> Path:
    """The file that ``path`` names: a file, or else a bundled one, as ``jetson`` is configs/jetson.yaml.

    Raises:
        ConfigError: neither a file nor a bundled name; the bundled names are listed.
    """
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    # A wheel installs configs/ inside this package; in a checkout, also an editable install, it is beside it.
    inside, beside = Path(__file__).with_name("configs"), Path(__file__).parents[1] / "configs"
    bundled = {file.stem: file for file in sorted((inside if inside.is_dir() else beside).glob("*.yaml"))}
    if str(path) not in bundled:
        raise ConfigError(f"{path} is neither a file nor a bundled config; choose from {', '.join(bundled)}")
    return bundled[str(path)]
