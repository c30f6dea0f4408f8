"""Kill commands at random moments, then give the next command, and see that nothing stays broken.

    python -m tests.helpers.kills --kills 100 [--sample]

Commands run in forks of this process, which has imported everything already, so that a kill falls into
the work and not into the imports. By default they work on a network that trains in a second, with
--sample on the bundled one. Prints a table.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mobileone_q.runs.storage.integrity import TRIALS
from tests.helpers.tiny import recipe, write_tiny

KINDS = ("calibrate", "build-engine", "qat", "tune", "train", "bundle")
MAKE_RUNS = ("calibrate", "qat", "tune")
SMALL_STEPS = ("--epochs", 4, "--batch", 16, "--checkpoint-every", 2, "--device", "cpu")


@dataclass(frozen=True)
class Outcome:
    """How one kill went: ``fault`` says in words what was wrong afterwards, and is empty if nothing was."""

    kind: str
    after_s: float
    fault: str


class Workshop:
    """A folder with a finished run and all that the commands read; each kill works on a copy of it."""

    def __init__(self, folder: Path, sample: bool = False) -> None:
        self.template, self.sample, self._folder = folder / "template", sample, folder
        self.template.mkdir()
        self.begin(self.template)
        for kind in ("train", "calibrate"):
            assert self.run(self.template, self.words(kind)) == 0, (self.template / "said.txt").read_text()
            if kind == "train":
                shutil.copy(self.template / "trained" / "weights.safetensors", self.template)
        os.rename(self.template / "out", self.template / "run")
        self.durations = {kind: self._time(kind) for kind in KINDS}

    def begin(self, folder: Path) -> None:
        """Put into a folder what a command reads."""
        if folder != self.template:
            shutil.copytree(self.template / "run", folder / "run")
            shutil.copy(self.template / "weights.safetensors", folder)
        write_tiny(folder)
        recipe(folder)
        (folder / "tmp").mkdir()

    def words(self, kind: str, resume: bool = False) -> list[object]:
        """The command line of a kind, in a folder that :meth:`begin` has filled."""
        again = ("--resume",) if resume else ()
        tiny = ("--weights", "weights.safetensors", "--data", "signals.npz", "--eval-data", "test.npz")
        network = ("--arch", "s0", "--images", 16) if self.sample else ("--arch", "tiny.yaml", *tiny)
        return {
            "calibrate": ["calibrate", *network, "--target", "tensorrt", "--output", "out"],
            "build-engine": ["build-engine", "--int8", "run"],
            "qat": ["qat", "run", *SMALL_STEPS, "--output", "out", *again],
            "tune": ["tune", "run", "--seconds", 2, "--output", "out", *again],
            "train": ["train", "recipe.yaml", *SMALL_STEPS, "--output", "trained", *again],
            "bundle": ["build-engine", "--bundle", "out", "run"],
        }[kind]  # fmt: skip

    def run(self, folder: Path, words: Sequence[object], kill_after_s: float | None = None) -> int:
        """A command in a fork: its exit code, negative for the signal that ended it."""
        pid = os.fork()
        if pid == 0:
            self._become(folder, words)
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            os.kill(pid, signal.SIGKILL)  # a fork that has ended is still there for us to wait for
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def _become(self, folder: Path, words: Sequence[object]) -> None:
        """Turn this fork into the command; never returns."""
        code = 70
        try:
            os.setsid()
            os.chdir(folder)
            log = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ["TMPDIR"] = str(folder / "tmp")
            tempfile.tempdir = None
            from cli import main

            main([str(word) for word in words])
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def fresh(self, name: str) -> Path:
        """A new folder with all that a command reads."""
        folder = self._folder / name
        folder.mkdir()
        self.begin(folder)
        return folder

    def _time(self, kind: str) -> float:
        folder = self.fresh(f"whole-{kind}")
        started = time.monotonic()
        assert self.run(folder, self.words(kind)) == 0, (folder / "said.txt").read_text()
        seconds = time.monotonic() - started
        shutil.rmtree(folder)
        return seconds

    def kill(self, kind: str, number: int, draw: random.Random) -> Outcome | None:
        """Kill a command once and give the next one; None if it was over before it could be killed."""
        folder = self.fresh(f"{number}-{kind}")
        after_s = draw.uniform(0, self.durations[kind])
        try:
            if self.run(folder, self.words(kind), after_s) != -signal.SIGKILL:
                return None
            return Outcome(kind, after_s, self._fault(folder, kind))
        finally:
            shutil.rmtree(folder)

    def _fault(self, folder: Path, kind: str) -> str:
        """What is wrong after the next command; empty if nothing is."""
        place = folder / "out"
        if kind in (*MAKE_RUNS, "bundle") and place.exists():
            return ""  # killed between its last act and its end
        is_resumed = (
            any(folder.glob(".out.partial-*/training/checkpoint.pt"))
            or any(folder.glob(f".out.partial-*/{TRIALS}"))
            or (folder / "trained/training/checkpoint.pt").is_file()
        )
        if self.run(folder, self.words(kind, resume=is_resumed)) != 0:
            return f"the next {kind} fails: {(folder / 'said.txt').read_text().splitlines()[-1:]}"
        left = [path for path in folder.rglob("*") if ".partial-" in path.name]
        # torch makes a folder for compiled kernels there, also where nothing is killed.
        left += [path for path in (folder / "tmp").iterdir() if not path.name.startswith("torchinductor_")]
        if left:
            return f"left behind: {left}"
        for run in ("run", *(["out"] if kind in MAKE_RUNS else [])):
            if self.run(folder, ["verify", run]) != 0:
                return f"{run} is damaged: {(folder / 'said.txt').read_text().splitlines()[-1:]}"
        return ""


def kill_often(folder: Path, kills: int, seed: int = 0, sample: bool = False) -> list[Outcome]:
    """Kill so many commands, of all kinds in turn, and give how each went."""
    shop, draw = Workshop(folder, sample), random.Random(seed)
    outcomes: list[Outcome] = []
    number = 0
    while len(outcomes) < kills:
        outcome = shop.kill(KINDS[len(outcomes) % len(KINDS)], number, draw)
        number += 1
        if outcome is not None:
            outcomes.append(outcome)
            if outcome.fault:
                print(
                    f"{outcome.kind} after {outcome.after_s:.2f} s: {outcome.fault}",
                    file=sys.stderr,
                    flush=True,
                )
    return outcomes


def import_everything() -> None:
    """Import now what a command would import late, so that forks begin with their work."""
    import onnxruntime  # noqa: F401
    import torch
    import torch.utils.tensorboard

    import cli  # noqa: F401

    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", action="store_true", help="the bundled sample, which takes longer")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import_everything()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = kill_often(Path(folder), args.kills, args.seed, args.sample)
    print("| command | kills | recovered, nothing left |")
    print("|---|---|---|")
    for kind in KINDS:
        mine = [outcome for outcome in outcomes if outcome.kind == kind]
        print(f"| {kind} | {len(mine)} | {sum(not outcome.fault for outcome in mine)} |")
    sys.exit(any(outcome.fault for outcome in outcomes))


if __name__ == "__main__":
    main()
