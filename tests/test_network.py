"""The project is quiet: no command asks the network for anything, or writes outside its run folder."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cli
from tests.helpers.tiny import write_tiny

ROOT = Path(__file__).resolve().parent.parent
SILENCERS = ("CI", "ORT_RUNNING_UNIT_TESTS", "ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY")
# Python imports a module of this name at its start. This one logs each use of the network and fails it.
GUARD = """
import os, socket

def forbid(name, is_allowed):
    real = getattr(socket.socket, name, None) or getattr(socket, name)
    def guarded(*arguments, **options):
        if is_allowed(arguments):
            return real(*arguments, **options)
        with open(os.environ["GUARD_LOG"], "a") as log:
            log.write(f"{name} {arguments[-1:]}\\n")
        raise OSError(f"the test forbids {name}")
    setattr(socket.socket if hasattr(socket.socket, name) else socket, name, guarded)

is_local = lambda arguments: arguments[0].family == socket.AF_UNIX
for name in ("connect", "connect_ex", "sendto"):
    forbid(name, is_local)
for name in ("getaddrinfo", "gethostbyname"):
    forbid(name, lambda arguments: False)
"""
WRITING = re.compile(
    r'(?:openat\([^,]+, |open\(|creat\()"(?P<opened>[^"]+)", [^)]*(?:O_WRONLY|O_RDWR|O_CREAT)[^)]*\) = \d'
    r'|(?:mkdir|mkdirat|rename|renameat|renameat2|unlink|unlinkat|symlink|link)\((?:[^"]*)"(?P<changed>[^"]+)"'
    r".*\) = 0"
)


class Sandbox:
    """A folder that stands for a user's whole machine: a home, a temporary folder, a place to work."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home, self.work, self.log = folder / "home", folder / "work", folder / "network.log"
        for each in (self.home, self.work, folder / "tmp", folder / "guard"):
            each.mkdir()
        (folder / "guard" / "sitecustomize.py").write_text(GUARD)

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key not in SILENCERS}
        return kept | {
            "HOME": str(self.home),
            "XDG_CACHE_HOME": str(self.home / ".cache"),
            "TMPDIR": str(self.folder / "tmp"),
            "PYTHONPATH": f"{self.folder / 'guard'}{os.pathsep}{ROOT}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "GUARD_LOG": str(self.log),
        }

    def run(self, *words: object, under: tuple[str, ...] = ()) -> str:
        """Run a command of Python's in the place to work; returns what it printed."""
        command = [*under, sys.executable, *map(str, words)]
        ran = subprocess.run(
            command, cwd=self.work, env=self.environment, capture_output=True, text=True, timeout=900
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def traces(self) -> list[str]:
        """What is left in the home and in the log of the network."""
        used = self.log.read_text().splitlines() if self.log.exists() else []
        return used + [str(path) for path in self.home.rglob("*")]


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path)


def test_the_guard_notices(sandbox):
    """Otherwise the tests below would prove nothing."""
    code = """
import socket, pathlib
for act in (lambda: socket.getaddrinfo("localhost", 80), lambda: socket.socket().connect(("127.0.0.1", 9))):
    try:
        act()
    except OSError as error:
        print(error)
pathlib.Path.home().joinpath("x").touch()
"""
    assert sandbox.run("-c", code).split("\n")[:2] == [
        "the test forbids getaddrinfo",
        "the test forbids connect",
    ]
    assert [trace.split()[0].rpartition("/")[2] for trace in sandbox.traces()] == [
        "getaddrinfo",
        "connect",
        "x",
    ]


@pytest.mark.slow
def test_commands_use_no_network_and_write_only_their_run_folder(sandbox):
    run = sandbox.work / "run"
    sandbox.run("-c", GIVE_ALL, f"calibrate --arch s0 --images 8 --output {run}\nbuild-engine {run}")
    assert sandbox.traces() == []
    assert [path.name for path in sandbox.work.iterdir()] == ["run"]
    assert list((sandbox.folder / "tmp").iterdir()) == []


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_native_code_uses_no_network_either(sandbox):
    """The socket guard sees Python alone; strace also sees ONNX Runtime."""
    trace = Trace(sandbox)
    run = sandbox.work / "run"
    sandbox.run("-m", "cli", "info", "--arch", "s0", "--runs", 2, "--image-size", 32, under=trace.tracer)
    sandbox.run("-m", "cli", "calibrate", "--arch", "s0", "--images", 8, "--output", run, under=trace.tracer)
    trace.check()


# One process gives all of them, so that it imports once. It also lives long enough for what a runtime
# does in its first minute.
EVERY_COMMAND = """
train recipe.yaml --epochs 1 --device cpu --output w
fuse --arch tiny.yaml --data signals.npz w/weights.safetensors fused.safetensors
calibrate --arch tiny.yaml --weights w/weights.safetensors --data signals.npz --target tensorrt --output run
build-engine --int8 run
build-engine --bundle bundle run
profile --runs 2 run
evaluate --data signals.npz run
evaluate --parity --data signals.npz run
evaluate --data signals.npz run/engines/int8.onnxruntime.onnx
report run
qat run --epochs 1 --batch 16 --device cpu --output tuned
tune --seconds 2 --data signals.npz --output mixed run
compare run tuned
benchmark --data signals.npz --runs 2 run
verify run
sensitivity --arch tiny.yaml --weights w/weights.safetensors --data signals.npz
info --arch tiny.yaml --runs 1
roofline --device orin-nano --arch s0
doctor
runs list .
runs clean --yes .
calibrate --arch s0 --images 8 --output sample
build-engine --fp32 sample
predict --run sample --precision fp32 image.png
build-engine --fp32 --triton triton sample
build-engine --fp32 --deepstream deepstream sample
build-engine --backend onnxruntime --config mixed/tuned.yaml run
report --device orin-nano sample
doctor --report issue.zip sample
"""
VIDEO = "predict --run sample --precision fp32 --every 1 clip.avi\n"
GIVE_ALL = """
import sys
from cli import main
from tests.helpers.sample import smaller_sample
with smaller_sample():
    for line in sys.argv[1].strip().splitlines():
        try:
            main(line.split())
        except SystemExit as leaving:
            if leaving.code:
                sys.exit(f"{line}: {leaving.code}")
"""


def test_every_command_is_among_those_that_are_traced():
    given = {line.split()[0] for line in EVERY_COMMAND.strip().splitlines()}
    assert given == set(cli.main.commands)


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_every_command_is_quiet(sandbox):
    write_tiny(sandbox.work)
    (sandbox.work / "recipe.yaml").write_text("arch: tiny.yaml\ndata: signals.npz\neval-data: test.npz\n")
    Image.new("RGB", (40, 30)).save(sandbox.work / "image.png")
    trace = Trace(sandbox)
    commands = EVERY_COMMAND + (VIDEO if write_video(sandbox.work / "clip.avi") else "")
    sandbox.run("-c", GIVE_ALL, commands, under=trace.tracer)
    trace.check()


def write_video(path):
    """Write three frames; False where OpenCV is not installed."""
    try:
        import cv2
    except ImportError:
        return False
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for level in (0, 100, 200):
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    return True


class Trace:
    """strace around a command, and what it must not have seen."""

    CALLS = "connect,sendto,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat"

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox, self._log = sandbox, sandbox.folder / "strace.log"
        options = ("-f", "-qq", "-s", "4096", "-o", str(self._log), "-e", f"trace={self.CALLS}")
        self.tracer = ("strace", *options)
        try:
            sandbox.run("-c", "", under=self.tracer)
        except AssertionError:
            pytest.skip("strace may not trace here")

    def check(self) -> None:
        """Nothing asked the network, and nothing was written outside the sandbox or into its home."""
        lines = self._log.read_text(errors="replace").splitlines()
        assert not [line for line in lines if "AF_INET" in line]
        written = [match["opened"] or match["changed"] for line in lines if (match := WRITING.search(line))]
        allowed = (str(self._sandbox.folder), "/dev/", "/proc/self/", "/sys/")
        assert written
        assert not [path for path in written if path.startswith("/") and not path.startswith(allowed)]
        assert not [path for path in written if ".." in Path(path).parts]
        assert self._sandbox.traces() == []


def test_telemetry_is_off_before_onnxruntime_is_imported(sandbox):
    shown = "print(os.environ['ORT_DISABLE_TELEMETRY'], 'onnxruntime' in sys.modules)"
    for module in ("mobileone_q", "cli", "calibrate.recipe"):
        code = f"import os, sys, {module}; {shown}"
        assert sandbox.run("-W", "error", "-c", code).split() == ["1", "False"]


def test_a_user_who_imported_onnxruntime_first_is_warned(sandbox):
    code = """
import sys, types, warnings
sys.modules["onnxruntime"] = types.ModuleType("onnxruntime")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import mobileone_q
print(*(each.message for each in caught), sep="\\n")
"""
    said = sandbox.run("-c", code)
    assert said.startswith("onnxruntime was imported before mobileone_q")
    assert "ORT_DISABLE_TELEMETRY=1" in said
    assert len(said.splitlines()) == 1
    code = "import os; os.environ['ORT_DISABLE_TELEMETRY'] = '1'" + code
    assert sandbox.run("-c", code).strip() == ""
