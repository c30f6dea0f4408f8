"""What it costs that commands check the SHA-256 of a run's files: seconds of CPU, command by command.

    python benchmarks/verification.py [--run runs/s0]

By default on a run of the bundled sample, calibrated for this on 32 images. A run of your own must be for
target tensorrt, since one of the commands writes a bundle. Each command runs in a process of its own. Prints
a Markdown table of the processor time of the whole command, of hashing within it, and of the difference,
which is what the command would take without verification.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMMANDS = (
    "build-engine --int8 RUN",
    "build-engine --bundle FOLDER/bundle RUN",
    "profile --runs 20 RUN",
    "evaluate --images 100 RUN",
    "predict --run RUN IMAGE",
    "qat RUN --epochs 1 --images 32 --output FOLDER/tuned",
    "report RUN",
    "verify RUN",
    "runs list FOLDER",
)


def time_one(words: list[str]) -> None:
    """Run a command in this process; the last line says its seconds, and those of hashing."""
    from mobileone_q import files

    hashing, real = 0.0, files.sha256

    def sha256(path: Path) -> str:
        nonlocal hashing
        started = time.process_time()
        try:
            return real(path)
        finally:
            hashing += time.process_time() - started

    files.sha256 = sha256  # before the modules that take it by name
    from cli import main

    try:
        main(words)
    except SystemExit as leaving:
        if leaving.code:
            raise
    print(f"\n{time.process_time():.3f} {hashing:.4f}")


def measured(words: list[str]) -> tuple[float, float]:
    """(seconds of CPU of a command, of hashing in it)."""
    command: list[Any] = [sys.executable, __file__, "--one", *words]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    whole, hashing = map(float, printed.splitlines()[-1].split())
    return whole, hashing


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        time_one(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, help="a run for target tensorrt")
    args = parser.parse_args()
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        run = args.run or Path(folder) / "run"
        Image.new("RGB", (48, 48)).save(Path(folder) / "image.png")
        print("| command | before, CPU s | after | of that hashing, ms |")
        print("|---|---|---|---|")
        if args.run is None:
            words = ["calibrate", "--arch", "s0", "--images", "32", "--target", "tensorrt"]
            row("calibrate --images 32", *measured([*words, "--output", str(run)]))
        for command in COMMANDS:
            places = {"RUN": str(run), "FOLDER": folder, "IMAGE": f"{folder}/image.png"}
            line = command
            for name, place in places.items():
                line = line.replace(name, place)
            row(command, *measured(line.split()))


def row(command: str, whole: float, hashing: float) -> None:
    print(f"| `{command}` | {whole - hashing:.2f} | {whole:.2f} | {1000 * hashing:.0f} |", flush=True)


if __name__ == "__main__":
    main()
