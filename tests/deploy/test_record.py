"""record.py beside a stand-in for trtexec, with stand-ins for what a Jetson has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mobileone_q.deploy import record

# Of the form in the Jetson Linux Developer Guide, "tegrastats Utility": r36 (Orin), and r32, without mW.
ORIN = (
    "11-14-2024 12:34:56 RAM 3162/30536MB (lfb 6x4MB) SWAP 0/15268MB (cached 0MB) CPU [1%@729,0%@729,off] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 0%@[305] cpu@47.968C tj@47.968C VDD_GPU_SOC {0}mW/3175mW VDD_CPU_CV 4mW/4mW"
)
NANO = (
    "RAM 2350/3964MB (lfb 2x1MB) IRAM 0/252kB(lfb 252kB) CPU [2%@102] EMC_FREQ 4%@1600 GR3D_FREQ 0%@76 "
    "APE 25 PLL@24C POM_5V_IN {0}/1532 POM_5V_GPU 0/0 POM_5V_CPU 123/123"
)
TRTEXEC = """#!/bin/sh
echo "[I] building"
echo "[I] Starting inference"
for TRY in $(seq 200); do [ -z "$2" ] || [ -e "$2" ] || sleep 0.05; done
echo "[I] === Performance summary ==="
exit $1
"""
TEGRASTATS = """#!/bin/sh
[ "$1 $2" = "--interval 100" ] || exit 1
for MILLIWATTS in 3000 5000 4000; do echo "{line}"; done
touch {mark}
exec sleep 30
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["state.json", "./nothing"], "cannot run ./nothing"),
        ([".", "true"], "write .: "),
        (["no/state.json", "echo", record.BEGIN], "cannot write no/state.json"),
    ],
)
def test_what_cannot_be_run_or_written_is_said(tmp_path, words, said):
    result = subprocess.run(
        [sys.executable, record.__file__, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
    assert said in result.stderr


@pytest.fixture
def board(tmp_path):
    """A folder of stand-ins that is put first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def write(name, text):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    write("trtexec", TRTEXEC)
    return folder, write


def run(board, tmp_path, code=0, wait_for=""):
    environment = os.environ | {"PATH": f"{board[0]}:{os.environ['PATH']}"}
    words = [sys.executable, record.__file__, tmp_path / "state.json", "trtexec", str(code), wait_for]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=20)
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize(("line", "rail"), [(ORIN, "VDD_GPU_SOC"), (NANO, "POM_5V_IN")])
def test_mode_and_power_of_the_timed_run(board, tmp_path, line, rail):
    mark = tmp_path / "told"
    board[1]("tegrastats", TEGRASTATS.format(line=line.format("${MILLIWATTS}"), mark=mark))
    board[1](
        "nvpmodel", '#!/bin/sh\necho "NV Fan Mode:quiet"; echo "NV Power Mode: MODE_15W_6CORE"; echo 2\n'
    )
    done = run(board, tmp_path, wait_for=str(mark))
    assert done.returncode == 0
    assert "[I] building" in done.stdout
    state = json.loads((tmp_path / "state.json").read_text())
    assert state["power_mode"] == "MODE_15W_6CORE"
    assert state["power_w"][rail] == {"mean": 4.0, "max": 5.0}
    assert state["samples"] == 3
    assert not {"RAM", "SWAP", "IRAM", "EMC_FREQ", "APE"} & set(state["power_w"])


def test_a_machine_that_is_no_jetson_is_recorded_as_far_as_it_goes(board, tmp_path):
    assert run(board, tmp_path).returncode == 0
    state = json.loads((tmp_path / "state.json").read_text())
    assert (state["power_mode"], state["power_w"], state["samples"]) == (None, {}, 0)


def test_a_failure_is_passed_on_and_leaves_no_old_record(board, tmp_path):
    (tmp_path / "state.json").write_text("{}")
    assert run(board, tmp_path, code=7).returncode == 7
    assert not (tmp_path / "state.json").exists()


def test_clocks_are_read_where_the_kernel_has_them(tmp_path, monkeypatch):
    for name, now in (("15480000.nvdec", 1), ("17000000.gpu", 612_000_000)):
        (tmp_path / "devfreq" / name).mkdir(parents=True)
        (tmp_path / "devfreq" / name / "cur_freq").write_text(f"{now}\n")
        (tmp_path / "devfreq" / name / "max_freq").write_text("918000000\n")
    (tmp_path / "scaling_max_freq").write_text("1984000\n")
    monkeypatch.setattr(record, "DEVFREQ", tmp_path / "devfreq")
    monkeypatch.setattr(record, "CPUFREQ", tmp_path)
    assert record.clocks() == {"gpu": 612.0, "gpu limit": 918.0, "cpu limit": 1984.0}
    monkeypatch.setattr(record, "DEVFREQ", Path("/nowhere"))
    assert record.clocks() == {"cpu limit": 1984.0}
