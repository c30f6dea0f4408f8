"""A training run's figures over time: JSON lines, and TensorBoard's events beside them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from mobileone_q.errors import MissingDependency
from mobileone_q.files import write_text


class Journal:
    """Appends to ``metrics.jsonl`` and ``tensorboard/`` of a folder; processes but the first write nothing.

    Lines of steps beyond ``step``, which a killed run left after its last checkpoint, are dropped.
    """

    def __init__(self, folder: Path, step: int, writes: bool = True) -> None:
        self._file = self._events = None
        if not writes:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingDependency(
                "training needs TensorBoard's writer: pip install mobileone-q[train]"
            ) from None
        path = folder / "metrics.jsonl"
        kept = [line for line in _lines(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, **figures: Any) -> None:
        """Record figures of a step; numbers go to TensorBoard too."""
        if self._file is None or self._events is None:
            return
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()
        for name, value in figures.items():
            if isinstance(value, (int, float)):
                self._events.add_scalar(name, value, step)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None and self._events is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._events.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    """What can be read of a file whose last line may be cut short."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
