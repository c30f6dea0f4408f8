"""The contract on the floors in pyproject.toml: it catches imports that run up, and leaves no module out."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("mobileone_q", "calibrate")
# Tests of more than one module; every other file is named after the module that it tests.
OF_MANY_MODULES = {
    "architecture/test_damaged_config.py": "damaged and impossible architecture files, beside test_config.py",
    "calibrate/test_properties.py": "calibration of architectures drawn at random",
    "data/test_odd_images.py": "images, labels and names of every kind, through commands too",
    "export/test_other_tools.py": "every form of graph in onnxslim, OpenVINO and Polygraphy",
    "export/test_float_output.py": "no graph has an INT8 depthwise convolution that writes floating point",
    "fuzz/test_readers.py": "every reader of files, given damaged ones",
    "report/test_browser.py": "the page in a real browser",
    "models/test_import_order.py": "modules of the room import in any order",
    "runs/test_array_runs.py": "every command on a run that was calibrated on arrays",
    "runs/test_pipeline.py": "from a checkpoint to an engine that follows FP32",
    "runs/storage/test_records_of_files.py": "what a run records of its files, on made-up folders",
    "test_audit.py": "what `make audit` makes of pip-audit's answer",
    "test_docs.py": "the pages and the script in docs/",
    "test_floors.py": "the floors",
    "test_faults.py": "full disks, closed and plain terminals, Ctrl-C",
    "test_kills.py": "commands killed at random moments, and the next ones",
    "test_network.py": "commands are quiet on the network",
    "test_impossible_values.py": "values that cannot be, through every command that reads them",
    "test_odd_words.py": "words and arguments that nobody should give, to all commands and functions",
    "test_packaging.py": "wheel and sdist",
    "test_public_face.py": "what the package offers, and what importing it costs",
    "test_real.py": "real weights and images, of the developers' folder",
    "test_wrong_answers.py": "what several places once answered differently",
}


def floors() -> tuple[list[list[str]], list[list[str]]]:
    """The rooms of each floor from the top, of the house and inside runs/, as pyproject.toml lists them.

    (tomllib needs Python 3.11.)
    """
    lists = re.findall(r"^layers = (\[.*?^\])", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    house, runs = (
        [re.split(r" [|:] ", re.sub(r"[()]", "", floor)) for floor in ast.literal_eval(layers)]
        for layers in lists
    )
    return house, [[f"mobileone_q.runs.{room}" for room in floor] for floor in runs]


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module(path.parents[node.level - 1]) if node.level else ""
            base = ".".join(filter(None, (package, node.module)))
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def inside(name: str, *rooms: str) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter over the packages in ``folder``."""
    words = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    # The output is wrapped in the terminal's width.
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run([*words, "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path):
    """The two packages' sources and the contract, to be spoiled."""
    pytest.importorskip("importlinter", reason="import-linter needs Python 3.11")
    ignore = shutil.ignore_patterns("__pycache__", "*.npz", "*.safetensors")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


ARROWS = {
    "up": ("mobileone_q.models.chain", "import mobileone_q.runs.storage.folder\n"),
    "up, inside a function": ("mobileone_q.files", "def f():\n    from mobileone_q.data import idx\n"),
    "up, into the other package": ("mobileone_q.export.graph", "from calibrate import ranges\n"),
    "to the room next door": ("calibrate.ranges", "from mobileone_q.report import html\n"),
    "up, inside runs": ("mobileone_q.runs.storage.folder", "from mobileone_q.runs import publish\n"),
    "for type checkers alone": (
        "mobileone_q.engines.base",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import mobileone_q.data.idx\n",
    ),
}


@pytest.mark.parametrize("kind", ARROWS)
def test_an_import_against_the_floors_fails_the_lint(copy, kind):
    name, line = ARROWS[kind]
    path = copy.joinpath(*name.split(".")).with_suffix(".py")
    (target,) = re.findall(r"(?:import|from) ((?:mobileone_q|calibrate)[\w.]*(?: import \w+)?)", line)
    arrow = f"{name} -> {target.replace(' import ', '.')} "
    assert arrow not in lint(copy).stdout
    with path.open("a") as file:
        file.write(line)
    result = lint(copy)
    assert result.returncode == 1
    broken = "The floors inside runs" if "runs" in kind else "The floors of the house"
    assert f"{broken} BROKEN" in result.stdout
    assert arrow in result.stdout


@pytest.mark.parametrize(("part", "folders"), [(0, PACKAGES), (1, ("mobileone_q/runs",))])
def test_every_module_lives_on_one_floor(part, folders):
    layers = floors()[part]
    rooms = [room for floor in layers for room in floor]
    assert len(rooms) == len(set(rooms))
    assert len(layers) <= 8
    homeless = {module(path) for path in sources(*folders) if not inside(module(path), *rooms)}
    assert homeless <= {"mobileone_q", "mobileone_q.runs"}, "add the room to a floor in pyproject.toml"


def test_nothing_imports_the_command_line_or_the_benchmarks():
    """import-linter looks at packages alone, so what stands above them is held here."""
    guilty = {
        f"{module(path)} -> {name}"
        for path in sources(*PACKAGES)
        for name in imports(path)
        if inside(name, "cli", "benchmarks", "tests")
    }
    assert not guilty


def test_no_test_imports_another():
    guilty = {
        f"{module(path)} -> {name}"
        for path in sources("tests")
        for name in imports(path)
        if inside(name, "tests")
        and not inside(name, "tests.helpers")
        # The harnesses are the fuzzer's own; its tests and campaigns are all that use them.
        and not (inside(name, "tests.fuzz") and inside(module(path), "tests.fuzz"))
    }
    assert not guilty, "what tests share belongs in tests/helpers/"


def test_the_tests_mirror_the_tree():
    strays = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name = path.relative_to(ROOT / "tests")
        tested = name.with_name(name.name.removeprefix("test_"))
        homes = (ROOT / "mobileone_q" / tested, ROOT / tested)
        if name.as_posix() not in OF_MANY_MODULES and not any(home.is_file() for home in homes):
            strays.append(name.as_posix())
    assert not strays, "name a test after its module, or explain it in OF_MANY_MODULES"


def test_no_exception_outlives_its_file():
    assert {name for name in OF_MANY_MODULES if not (ROOT / "tests" / name).is_file()} == set()
