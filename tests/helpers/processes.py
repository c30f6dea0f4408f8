"""Other processes: one that has ended, and several at once."""

import subprocess
import sys

from tests.helpers.training import ROOT, environment


def dead_pid():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def at_once(folder, *commands):
    """Run commands side by side, each in a process of its own: (exit code, what it said) of each."""
    started = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "cli.py"), *map(str, words)],
            cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for words in commands
    ]  # fmt: skip
    said = [process.communicate()[0] for process in started]
    return [(process.returncode, text) for process, text in zip(started, said)]
