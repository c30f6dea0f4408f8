"""A harness: what a reader reads, how its files are damaged, and what may come of it."""

from __future__ import annotations

import functools
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from click.testing import CliRunner

from cli import main
from mobileone_q.errors import MobileOneQError
from tests.fuzz import watch
from tests.helpers.mutations import Damage, damaged

CRASHERS = Path(__file__).parent / "crashers"
# What may come of an input. The first two are right, all others are wrong.
Kind = Literal[
    "answered", "refused", "traceback", "unclear", "hang", "crash", "command", "network", "foreign file",
    "silent change",
]  # fmt: skip
RIGHT = ("answered", "refused")


class TooLong(BaseException):
    """The time of an input is over; no reader that expects any Exception of a library can swallow it."""


class Refused(MobileOneQError):
    """A command refused in one line, or with a usage message."""


class SilentChange(Exception):
    """A command used a file that is not as the project wrote it, and did not say so."""


@dataclass(frozen=True)
class Outcome:
    """What came of an input; ``detail`` is the refusal, or the traceback's last call and error."""

    kind: Kind
    detail: str = ""

    @property
    def is_right(self) -> bool:
        return self.kind in RIGHT

    @property
    def reason(self) -> str:
        """The detail without what differs between inputs that go wrong in the same way."""
        if self.kind == "traceback":
            return self.detail.split(": ")[0]
        return re.sub(r"/tmp/[\w/.-]+|\(.*\)|'[^']*'|\d+", "", self.detail)


@dataclass(frozen=True)
class Harness:
    """One reader of files.

    Attributes:
        name: the kind of file.
        make_seeds: writes good files with the help of an empty folder; their bytes.
        use: puts bytes where the reader finds them, inside a folder that is only its own, and reads.
        damages: how good files are made bad; one is drawn for each input.
        hostile: inputs made by hand.
        says: what each refusal must contain; ``{folder}`` stands for the folder.
        words: for the real command line: puts bytes in place as ``use`` does, and gives the words.
        weight: how many inputs this harness gets, for each that another gets.
        may_name_files: whether the user's own file may name other files, as options do.
        is_read: whether good files are answered; False where what they name is missing on purpose.
    """

    name: str
    make_seeds: Callable[[Path], Sequence[bytes]]
    use: Callable[[Path, bytes], object]
    damages: Sequence[Damage] = (damaged,)
    hostile: Sequence[bytes] = ()
    says: Sequence[str] = ()
    words: Callable[[Path, bytes], Sequence[object]] | None = None
    weight: float = 1.0
    may_name_files: bool = False
    is_read: bool = True

    @functools.cached_property
    def seeds(self) -> list[bytes]:
        """The good files' bytes, made once in a process."""
        with tempfile.TemporaryDirectory(prefix="fuzz-seeds-") as folder:
            return list(self.make_seeds(Path(folder)))

    def draw(self, random: Random) -> bytes:
        """A damaged file, now and then a hostile one."""
        if self.hostile and random.random() < 0.05:
            return random.choice(self.hostile)
        return random.choice(self.damages)(random, random.choice(self.seeds))

    def crashers(self) -> list[Path]:
        """Inputs that once went wrong, kept as files."""
        return sorted((CRASHERS / self.name).glob("*"))


def judge(harness: Harness, folder: Path, content: bytes) -> Outcome:
    """Give ``content`` to a reader and say what came of it."""
    with watch.watching(folder) as seen:
        outcome = _judged(harness, folder, content)
    for kind, detail in seen:
        if kind != "foreign file" or not harness.may_name_files:
            return Outcome(kind, detail)
    return outcome


def _judged(harness: Harness, folder: Path, content: bytes) -> Outcome:
    try:
        harness.use(folder, content)
    except MobileOneQError as error:
        line = str(error)
        expected = [word.format(folder=folder) for word in harness.says]
        if not line or not line.isprintable() or not all(word in line for word in expected):
            return Outcome("unclear", repr(line)[:300])
        return Outcome("refused", line)
    except TooLong:
        return Outcome("hang", _site())
    except SilentChange as error:
        return Outcome("silent change", str(error))
    except Exception as error:
        return Outcome("traceback", f"{type(error).__name__} at {_site()}: {str(error)[:120]!r}")
    return Outcome("answered")


def _site() -> str:
    """Where in the project the exception that is being handled came from."""
    calls = traceback.extract_tb(sys.exc_info()[2])
    ours = [
        call for call in calls if "/site-packages/" not in call.filename and "/fuzz/" not in call.filename
    ]
    call = (ours or list(calls))[-1]
    return f"{'/'.join(Path(call.filename).parts[-3:])}:{call.lineno}"


def command(*words: object) -> str:
    """Run a command in this process and give what it printed.

    Raises:
        Refused: it ended with one line and exit code 1, or with a usage message.
        SilentChange: never; other exceptions are those of the command.
    """
    result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    if result.exit_code == 0:
        return result.output
    lines = [line for line in result.output.splitlines() if line.lower().startswith("error: ")]
    if result.exit_code not in (1, 2) or len(lines) != 1:
        raise AssertionError(f"exit code {result.exit_code} and {len(lines)} errors: {result.output[-200:]}")
    raise Refused(lines[0])


def fresh_folder(folder: Path, name: str) -> Path:
    """An empty folder inside ``folder``."""
    path = folder / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
