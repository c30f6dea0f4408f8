"""Fuzzing of one reader, guided by coverage: atheris, where it is installed, changes the good files.

    pip install atheris
    python -m tests.fuzz.guided --only npz recording --seconds 60

Each reader gets an equal part of the time, in a process of its own; atheris ends a process at the
first input that goes wrong, and keeps that input in ``--keep``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.fuzz.campaign import own_folder
from tests.fuzz.harness import Harness, judge
from tests.fuzz.readers import harnesses

# Those whose files are small and whose readers are Python: there guidance by coverage helps most.
USUAL = (
    "architecture", "calibration-cache", "class-listing", "device-ppm", "engine-sidecar", "idx-images",
    "inspector", "json", "metric-log", "npz", "recording", "report", "shard", "torch-weights",
)  # fmt: skip


def guide(harness: Harness, seconds: int, keep: Path) -> None:
    """Read inputs until the time is over; ends the process."""
    import atheris

    with tempfile.TemporaryDirectory() as corpus, own_folder() as folder:
        for number, content in enumerate((*harness.seeds, *harness.hostile)):
            (Path(corpus) / str(number)).write_bytes(content)

        def read(content: bytes) -> None:
            outcome = judge(harness, folder, content)
            if not outcome.is_right:
                raise AssertionError(str(outcome))

        words = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=30", "-rss_limit_mb=8192"]
        words += [f"-artifact_prefix={keep}/{harness.name}-", "-print_final_stats=1", corpus]
        atheris.Setup([sys.argv[0], *words], read)
        atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="KIND", default=USUAL)
    parser.add_argument("--seconds", type=int, default=60, help="for all readers together")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz-found")
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    share, bad = max(1, options.seconds // len(options.only)), []
    import atheris

    with atheris.instrument_imports(include=["mobileone_q"]):
        known = harnesses()
    for name in options.only:
        child = os.fork()
        if child == 0:
            guide(known[name], share, options.keep)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            bad.append(name)
    print(f"{len(options.only)} readers, {share} s each; wrong: {', '.join(bad) or 'none'}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
