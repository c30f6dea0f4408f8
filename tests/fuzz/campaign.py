"""A fuzzing campaign over every reader: counts by kind of file and outcome.

    python -m tests.fuzz.campaign --inputs 100000 --seed 0
    python -m tests.fuzz.campaign --minutes 5
    python -m tests.fuzz.campaign --case npz:1234 --seed 0        # one input again, with its traceback
    python -m tests.fuzz.campaign --replay FOLDER/npz-1234        # a kept input again

The same seed gives the same inputs. Each kind is read in a process of its own, so that a crash or a
hang of native code is seen and counted. An input that goes wrong is kept in ``--keep``; copy it to
``tests/fuzz/crashers/KIND/`` once it is understood, and the suite reads it ever after. With
``--commands N``, the command line reads N more inputs, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from random import Random

import torch

from tests.fuzz.harness import Harness, Outcome, TooLong, judge
from tests.fuzz.readers import harnesses
from tests.helpers.training import ROOT, environment

LIMIT_S = 30  # of processor time; an input that takes longer is a hang
WAIT_S = 300  # by the clock, on a machine that others use too
MEMORY = 12 << 30  # bytes of address space for a child, beyond which Python raises MemoryError
BATCH = 250  # inputs of one child


def draw(harness: Harness, seed: int, index: int) -> bytes:
    """The input of a number."""
    return harness.draw(Random(f"{seed}/{harness.name}/{index}"))


def read_batch(harness: Harness, seed: int, first: int, last: int) -> Iterator[tuple[int, Outcome]]:
    """The outcome of each input from ``first`` until ``last``, read in a child process."""
    while first < last:
        for index, outcome in _in_child(harness, seed, first, last):
            yield index, outcome
            first = index + 1


def _in_child(harness: Harness, seed: int, first: int, last: int) -> Iterator[tuple[int, Outcome]]:
    """The outcomes until the end or the child's death."""
    harness.seeds  # noqa: B018  # made before the fork, so that every child has them
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _be_child(harness, seed, first, last, writer)
    os.close(writer)
    index, buffer = first, b""
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while True:
            if not select.select([pipe], [], [], 2 * WAIT_S)[0]:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                yield index, Outcome("hang", "in native code")
                return
            chunk = pipe.read(65536)
            if not chunk:
                break
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                yield index, pickle.loads(bytes.fromhex(line.decode()))
                index += 1
    status = os.waitpid(child, 0)[1]
    if index < last:
        yield index, Outcome("crash", f"signal {os.WTERMSIG(status)}, exit code {os.WEXITSTATUS(status)}")


def _be_child(harness: Harness, seed: int, first: int, last: int, writer: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_long)
    signal.signal(signal.SIGPROF, _too_long)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    status = 1
    try:
        with own_folder() as folder, open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)  # what libraries of C say
            with redirect_stdout(nowhere), redirect_stderr(nowhere):
                for index in range(first, last):
                    content = draw(harness, seed, index)
                    _limit(LIMIT_S, WAIT_S)
                    outcome = judge(harness, folder, content)
                    _limit(0, 0)
                    os.write(writer, pickle.dumps(outcome).hex().encode() + b"\n")
        status = 0
    finally:
        os._exit(status)


def _limit(processor_s: int, clock_s: int) -> None:
    signal.setitimer(signal.ITIMER_PROF, processor_s)
    signal.setitimer(signal.ITIMER_REAL, clock_s)


def _too_long(*_: object) -> None:
    raise TooLong(f"more than {LIMIT_S} s of processor time")


@contextmanager
def own_folder() -> Iterator[Path]:
    """A new folder, which is also where relative paths and the cache lead."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    before = os.getcwd()
    os.chdir(folder)
    os.environ["MOBILEONE_Q_CACHE"] = str(folder / "cache")
    try:
        (folder / "own").mkdir()
        yield folder / "own"
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)


class Counts:
    """Outcomes by kind of file; what went wrong is kept, and said once for each reason."""

    def __init__(self, seed: int, keep: Path) -> None:
        self.seed, self.keep = seed, keep
        self.kinds: dict[str, Counter[str]] = defaultdict(Counter)
        self.wrong: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        self.seconds: dict[str, float] = defaultdict(float)

    def add(self, harness: Harness, index: int, outcome: Outcome) -> None:
        self.kinds[harness.name][outcome.kind] += 1
        if outcome.is_right:
            return
        reason = (harness.name, outcome.kind, outcome.reason)
        if reason not in self.wrong:
            self.keep.mkdir(parents=True, exist_ok=True)
            (self.keep / f"{harness.name}-{index}").write_bytes(draw(harness, self.seed, index))
            print(f"{outcome.kind}: {harness.name}:{index}: {outcome.detail}", flush=True)
        self.wrong[reason].append(index)

    @property
    def total(self) -> int:
        return sum(counter.total() for counter in self.kinds.values())

    def table(self) -> str:
        """Counts as text: a row for each kind of file, a column for each outcome that was seen."""
        seen = sorted({kind for counter in self.kinds.values() for kind in counter})
        columns = ["answered", "refused", *(kind for kind in seen if kind not in ("answered", "refused"))]
        width = max(map(len, self.kinds))
        rows = [f"{'kind of file':{width}} {'inputs':>8} " + " ".join(f"{name:>10}" for name in columns)]
        for name, counter in self.kinds.items():
            cells = " ".join(f"{counter[column]:10,}" for column in columns)
            rows.append(f"{name:{width}} {counter.total():8,} {cells}  {self.seconds[name]:6.0f} s")
        sums = " ".join(f"{sum(c[column] for c in self.kinds.values()):10,}" for column in columns)
        return "\n".join([*rows, f"{'all':{width}} {self.total:8,} {sums}"])


def run_campaign(
    chosen: list[Harness], seed: int, inputs: int | None, minutes: float | None, keep: Path
) -> Counts:
    """Read ``inputs`` inputs, shared out by weight, or as many as ``minutes`` allow."""
    counts, weights = Counts(seed, keep), sum(harness.weight for harness in chosen)
    end = None if minutes is None else time.monotonic() + 60 * minutes
    done: Counter[str] = Counter()
    wanted = {h.name: BATCH if inputs is None else -(-inputs * h.weight // weights) for h in chosen}
    while True:
        for harness in chosen:
            size = BATCH // 10 + 1 if inputs is None else BATCH
            first = done[harness.name]
            last = first + size if inputs is None else min(first + size, int(wanted[harness.name]))
            started = _seconds()
            for index, outcome in read_batch(harness, seed, first, last):
                counts.add(harness, index, outcome)
            counts.seconds[harness.name] += _seconds() - started
            done[harness.name] = max(first, last)
            if end is not None and time.monotonic() > end:
                return counts
        print(f"{counts.total:,} inputs read", flush=True)
        if inputs is not None and all(done[h.name] >= int(wanted[h.name]) for h in chosen):
            return counts


def _seconds() -> float:
    """CPU time of this process and of the children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def run_commands(chosen: list[Harness], seed: int, number: int, counts: Counts) -> Counter[str]:
    """Read ``number`` inputs with ``python cli.py``: outcomes by exit code and kind."""
    able = [harness for harness in chosen if harness.words]
    outcomes: Counter[str] = Counter()
    for index in range(number):
        harness = able[index % len(able)]
        with own_folder() as folder:
            content = draw(harness, seed, index)
            words = [str(word).replace("\0", "") for word in harness.words(folder, content)]
            try:
                done = subprocess.run(
                    [sys.executable, ROOT / "cli.py", *words],
                    capture_output=True, env=environment(), cwd=folder.parent, timeout=WAIT_S,
                )  # fmt: skip
                said = (done.stdout + done.stderr).decode(errors="replace")
                kind = {0: "answered", 1: "refused", 2: "refused"}.get(done.returncode, "crash")
                kind = "traceback" if "Traceback" in said else kind
            except subprocess.TimeoutExpired:
                kind, said = "hang", ""
        outcomes[kind] += 1
        if kind not in ("answered", "refused"):
            print(f"{kind}: {harness.name}:{index}: {words}\n{said[-600:]}", flush=True)
            counts.wrong[(harness.name, kind, "command line")].append(index)
    return outcomes


def replay(harness: Harness, content: bytes) -> None:
    """Read one input and let its traceback through."""
    with own_folder() as folder:
        print(f"{len(content)} bytes: {content[:200]!r}")
        print(judge(harness, folder, content))
        harness.use(folder, content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--inputs", type=int, help="how many in all")
    parser.add_argument("--minutes", type=float, help="as many as this time allows")
    parser.add_argument("--seed", type=int, default=None, help="the default is drawn, and printed")
    parser.add_argument("--only", nargs="+", metavar="KIND", help="these kinds of file")
    parser.add_argument("--commands", type=int, default=0, help="inputs for the command line besides")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz-found")
    parser.add_argument("--case", help="KIND:NUMBER, one input again")
    parser.add_argument("--replay", type=Path, help="a kept file, whose name begins with its kind")
    options = parser.parse_args()
    known = harnesses()
    if options.case:
        name, _, index = options.case.partition(":")
        return replay(known[name], draw(known[name], options.seed or 0, int(index)))
    if options.replay:
        fitting = [name for name in known if options.replay.name.startswith(f"{name}-")]
        name = max(fitting, key=len, default=options.replay.parent.name)
        return replay(known[name], options.replay.read_bytes())
    seed = Random().getrandbits(32) if options.seed is None else options.seed
    chosen = [known[name] for name in options.only or known]
    print(f"seed {seed}, {len(chosen)} kinds of file", flush=True)
    if options.inputs is None and options.minutes is None:
        parser.error("say --inputs or --minutes")
    started = time.monotonic()
    counts = run_campaign(chosen, seed, options.inputs, options.minutes, options.keep)
    print(counts.table())
    if options.commands:
        said = run_commands(chosen, seed, options.commands, counts)
        print("through the command line:", json.dumps(said))
    for (name, kind, reason), cases in sorted(counts.wrong.items()):
        print(f"WRONG {len(cases):5} {kind}: {name}:{cases[0]}: {reason}")
    print(f"{counts.total:,} inputs in {time.monotonic() - started:.0f} s; seed {seed}")
    sys.exit(bool(counts.wrong))


if __name__ == "__main__":
    main()
