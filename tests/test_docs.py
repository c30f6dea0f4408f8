"""What README.md and docs/ say holds: commands parse, links lead somewhere, and the script runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

import mobileone_q as mq
from cli import main

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md")))
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SCRIPT = ROOT / "docs" / "quickstart.py"
SCRIPT_LINES = 15
WITH_EXAMPLES = ("mobileone_q.runs.calibration", "mobileone_q.runs.model")
COMMANDS = "|".join(main.commands)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fences(page: Path, language: str) -> list[str]:
    """The blocks of code of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def shell_lines(page: Path) -> list[str]:
    """The lines of a page's shell blocks that call `mobileone-q`."""
    lines = [line for block in fences(page, "sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("mobileone-q ")]


def inline_commands(page: Path) -> list[str]:
    """Commands in running text, with or without `mobileone-q` before them, that have an argument."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    return re.findall(rf"`(?:mobileone-q )?((?:{COMMANDS}) [^`]+)`", text)


def launch_lines(config: Path) -> list[str]:
    """The commands in a config's first comment."""
    return re.findall(r"^#.*?((?:mobileone-q|--module cli) [^`\n]*)", config.read_text(), re.M)


def words_of(line: str) -> list[str]:
    """Split a command line without its comment; ``[RUN]`` counts as RUN, and ``...`` as nothing."""
    words = shlex.split(line.replace("[RUN]", "RUN"), comments=True)
    return [word.removesuffix("...") for word in words if word != "..."]


def check_options(words: list[str]) -> None:
    """Every option exists in the command: for lines that leave something out."""
    command = main.commands[words[0]]
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    used = {word.split("=")[0] for word in words if word.startswith("--")}
    assert used <= known | {"--help"}


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Paths on the pages are relative to the checkout, and public weights are not downloaded."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("mobileone_q.checkpoints.download.fetch", Path)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, id=f"{name_of(page)}: {line.split('#')[0].strip()}")
        for page in PAGES
        for line in shell_lines(page)
    ],
)
def test_every_command_on_the_pages_parses(line):
    _, name, *words = words_of(line)
    if name in main.commands:
        main.commands[name].make_context(name, words)
    else:
        assert f"{name} {' '.join(words)}" == "COMMAND --help"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_in_running_text_exists(page):
    for command in inline_commands(page):
        check_options(words_of(command))


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_every_config_says_how_to_use_it(config):
    """Its first line is a command that parses; other lines, such as those for GPUs, have real options."""
    first, *others = launch_lines(config)
    assert config.read_text().startswith(f"# {first}")
    _, name, *words = words_of(first)
    main.commands[name].make_context(name, words)
    for line in others:
        check_options(words_of(line.removeprefix("--module cli").removeprefix("mobileone-q")))


def test_a_command_that_does_not_parse_is_noticed():
    with pytest.raises(click.NoSuchOption):
        main.commands["qat"].make_context("qat", words_of("--run runs/s0"))
    with pytest.raises(AssertionError):
        check_options(words_of("evaluate --engines"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        if target.startswith("#"):
            titles = re.findall(r"^#+ (.*)$", text, re.M)
            assert target[1:] in {title.lower().replace(" ", "-") for title in titles}
        else:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_on_the_pages_is_python(page):
    for block in fences(page, "python"):
        ast.parse(block)


def test_every_public_name_is_documented():
    page = (ROOT / "docs" / "python.md").read_text()
    missing = [name for name in mq.__all__ if not re.search(rf"\*\*`{name}\b", page)]
    assert not missing


def test_the_script_is_short_and_stands_in_full_on_its_page():
    script = SCRIPT.read_text()
    assert len(script.splitlines()) <= SCRIPT_LINES
    assert script in fences(ROOT / "docs" / "python.md", "python")


def run_script(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_script_goes_from_a_checkpoint_to_a_measured_engine(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(SCRIPT)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    out = capsys.readouterr().out
    said = re.fullmatch(r"runs/s0: drop (-?\d\.\d\d) points, \d+\.\d\d times as fast\n", out)
    assert said, out
    run = mq.open_run(tmp_path / "runs" / "s0")
    accuracy = run.read_report().accuracy
    assert accuracy is not None
    assert float(said[1]) == pytest.approx(accuracy.drop_pts, abs=0.005)
    assert sorted(path.name for path in (run.path / "engines").glob("*.onnx")) == [
        "fp32.onnxruntime.onnx",
        "int8.onnxruntime.onnx",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, attempted = doctest.testmod(importlib.import_module(module))
    assert attempted
    assert not failed


def test_the_sample_is_found_before_anything_else_is_imported(tmp_path):
    """``mobileone_q.sample`` is a module in a room that imports nothing by itself."""
    script = "import sys, mobileone_q as mq; print(mq.sample.ARCH, 'torch' in sys.modules)"
    assert run_script(tmp_path, "-c", script).stdout == "s0 False\n"


def test_each_fact_about_tensorrt_names_a_test_that_exists():
    rows = re.findall(r"\| `(tests/\S+?)::(\w+)` \|", (ROOT / "docs" / "tensorrt-facts.md").read_text())
    assert len(rows) >= 13
    for path, name in rows:
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"
