"""Commands killed at random moments: the next one works, and nothing is left behind."""

import subprocess
import sys

import pytest

from tests.helpers.training import ROOT, environment


@pytest.mark.long
def test_the_next_command_recovers(tmp_path):
    """In a process of its own, since its forks must not inherit the threads of this one."""
    words = [sys.executable, "-m", "tests.helpers.kills", "--kills", "12"]
    ran = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr
    rows = [line.split("|") for line in ran.stdout.splitlines()[2:]]
    assert len(rows) == 6
    assert all(killed.strip() == recovered.strip() == "2" for _, _, killed, recovered, _ in rows)
