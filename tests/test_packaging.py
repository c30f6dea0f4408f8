"""What a user installs: a wheel and an sdist with everything in them, each used away from the checkout."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import mobileone_q

ROOT = Path(__file__).parents[1]
FOLDERS = (
    "mobileone_q",
    "calibrate",
    "configs",
    "tests",
    "benchmarks",
    "docs",
    ".ci",
    ".devcontainer",
    ".github",
)
PACKAGES = {"mobileone_q": "mobileone_q", "calibrate": "calibrate", "configs": "mobileone_q/configs"}
# Some that are quick, and read files of the sdist.
QUICK_TESTS = (
    "tests/architecture/test_variants.py",
    "tests/data/test_sources.py",
    "tests/test_yaml_files.py",
)


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def files(*folders: str) -> set[str]:
    """Every file of the checkout under ``folders``, but for what Python caches."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if path.suffix != ".pyc"}


def say(*words, folder: Path, **environment: str) -> str:
    """What a command prints; it must not fail."""
    environment = os.environ | environment
    command = [str(word) for word in words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_package_is_listed():
    listed = set(setup_cfg()["options"]["packages"].split())
    folders = {str(Path(name).parent) for name in files(*PACKAGES) if name.endswith("/__init__.py")}
    assert listed == {name.replace("configs", "mobileone_q/configs").replace("/", ".") for name in folders}


def test_every_marker_of_the_extras_can_be_met():
    """import-linter needs Python 3.11: below it, `make test` still installs."""
    (line,) = (
        line
        for line in setup_cfg()["options.extras_require"]["dev"].splitlines()
        if line.startswith("import-linter")
    )
    assert line.endswith('; python_version >= "3.11"')


@pytest.fixture(scope="module")
def dist(once):
    """The wheel, which is built from the sdist, and the sdist."""
    pytest.importorskip("build")

    def make(folder: Path) -> None:
        source = folder / "source"  # of links: a build leaves files in the tree that it builds
        top = {path.name for path in ROOT.iterdir() if path.is_file() and path.name != ".git"}
        for name in files(*FOLDERS) | top:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).symlink_to(ROOT / name)
        command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source)
        say(*command, folder=folder, PYTHONPATH="")

    made = once("dist", make)
    (wheel,), (sdist,) = made.glob("*.whl"), made.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """The scripts' folder of a fresh environment that has the wheel, and this one's other packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    scripts = folder / "bin"
    (site,) = folder.glob("lib/python*/site-packages")
    # What is borrowed comes after the wheel on the path, and without its .pth files: an editable
    # install of this project in the outer environment is not seen.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    pip = (scripts / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    say(*pip, "--ignore-installed", dist[0], folder=folder, PYTHONPATH="")
    return scripts


@pytest.fixture(scope="module")
def unpacked(dist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(dist[1]) as file:
        if hasattr(tarfile, "data_filter"):
            file.extractall(folder, filter="data")
        else:
            file.extractall(folder)
    (top,) = folder.iterdir()
    return top


@pytest.mark.slow
def test_the_wheel_has_every_module_and_data_file(dist):
    with zipfile.ZipFile(dist[0]) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    expected = {name.replace(folder, PACKAGES[folder], 1) for folder in PACKAGES for name in files(folder)}
    assert names == expected | {"cli.py"}
    assert {"mobileone_q/py.typed", "calibrate/py.typed", "mobileone_q/configs/jetson.yaml"} <= names


@pytest.mark.slow
def test_the_sdist_is_the_whole_checkout(unpacked):
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    names = {name for name in names if not name.startswith("mobileone_q.egg-info/")}
    top = {"cli.py", "CHANGELOG.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md", ".gitignore"}
    top |= {"CITATION.cff", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "SECURITY.md", ".pre-commit-config.yaml"}
    assert names == files(*FOLDERS) | top | {"pyproject.toml", "setup.cfg", "PKG-INFO"}


@pytest.mark.slow
def test_the_metadata(dist):
    with zipfile.ZipFile(dist[0]) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(file.read(name).decode())
    assert metadata["Name"] == "mobileone-q"
    assert metadata["Author"] == "The mobileone-q project"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "quantization" in metadata["Keywords"].split(",")
    pythons = {f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)}
    assert pythons | {"Typing :: Typed"} <= set(metadata.get_all("Classifier"))
    extras = {"camera", "rtx", "openvino", "tensorrt", "torchao", "train", "docs", "dev"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    assert metadata.get_payload().startswith("# mobileone-q")


@pytest.mark.slow
def test_the_wheel_works_from_any_folder(installed, tmp_path):
    def run(*words):
        return say(installed / words[0], *words[1:], folder=tmp_path, PYTHONPATH="")

    where = run("python", "-c", "import mobileone_q, calibrate, cli; print(mobileone_q.__file__)")
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert "build-engine" in run("mobileone-q", "--help")
    assert "s0" in run("mobileone-q", "info", "--arch", "s0", "--runs", "0")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.long
def test_the_wheel_has_the_sample_and_the_configs(installed, tmp_path):
    """``--config cpu`` names a bundled file; without --weights and --data the sample is calibrated."""
    words = ("calibrate", "--config", "cpu", "--arch", "s0", "--images", "16", "--output", "run")
    output = say(installed / "mobileone-q", *words, folder=tmp_path, PYTHONPATH="")
    assert "target onnxruntime" in output
    assert (tmp_path / "run" / "int8.onnx").is_file()
    script = "import importlib.resources as r; print((r.files('mobileone_q.configs') / 'cpu.yaml').is_file())"
    assert say(installed / "python", "-c", script, folder=tmp_path, PYTHONPATH="") == "True\n"


@pytest.mark.slow
@pytest.mark.long
def test_the_sdist_s_tests_run_from_it(unpacked):
    words = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow", *QUICK_TESTS)
    output = say(*words, folder=unpacked, PYTHONPATH=str(unpacked))
    assert " passed" in output


@pytest.mark.slow
@pytest.mark.long
def test_the_script_passes_strict_type_checks_against_the_wheel(installed, tmp_path):
    """What a user's own check sees: py.typed, and the names of the stub file."""
    pytest.importorskip("mypy")
    script = shutil.copy(ROOT / "docs" / "quickstart.py", tmp_path)
    mypy = (sys.executable, "-m", "mypy", "--strict", "--python-executable", installed / "python")
    options = ("--follow-imports=silent", "--cache-dir", tmp_path / "cache")
    say(*mypy, *options, script, folder=tmp_path, PYTHONPATH="")
    Path(script).write_text(Path(script).read_text().replace('arch="s0"', "arch=0"))
    wrong = subprocess.run(
        [*map(str, (*mypy, *options, script))], cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    assert "incompatible type" in wrong.stdout


def test_one_version_everywhere():
    """The package, the newest release in the changelog, and the citation."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    releases = re.findall(
        r"^## (\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    assert citation["version"] == mobileone_q.__version__ == releases[0][0]
    assert str(citation["date-released"]) == releases[0][1]
