"""What every command has: an example, sections, --json, -q and -v, and help that is never cut."""

import json
import logging
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
import textwrap
from fcntl import ioctl
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli import main
from tests.helpers.cli import invoke, refused

ROOT = Path(__file__).parents[1]


def every_command(group=main, words=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from every_command(command, (*words, name))
        else:
            yield (*words, name), command


COMMANDS = dict(every_command())
NAMES = [" ".join(words) for words in COMMANDS]


def help_of(*words):
    result = CliRunner().invoke(main, [*words, "--help"], terminal_width=80)
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("name", NAMES)
def test_the_help_has_an_example_that_parses_and_fits(name):
    words = tuple(name.split())
    text = help_of(*words)
    assert max(map(len, text.splitlines())) <= 80
    example = next(line for line in text.splitlines() if line.startswith(f"  mobileone-q {name}")).split()
    COMMANDS[words].make_context(name, example[1 + len(words) :])
    for flag in ("--quiet", "--verbose", "--json"):
        assert flag in text
    assert "Every command:" in text
    assert "RANGE" not in text
    assert '[default: ""]' not in text


def test_what_a_recipe_gives_is_not_required_of_the_command_line():
    text = help_of("train")
    assert text.count("[required") == text.count("[required here") == 3
    assert "[required here" not in help_of("calibrate")


WITHOUT_EFFECT = {
    "profile --from recorded.json --runs 4": "--runs has no effect beside --from",
    "profile --from recorded.json runs/s0": "RUN has no effect beside --from",
    "predict --engine e.onnx --run runs/s0 x.png": "--run has no effect beside --engine",
    "predict --engine e.onnx --precision fp32 x.png": "--precision has no effect beside --engine",
    "evaluate --parity --precision fp32": "--precision has no effect beside --parity",
    "evaluate --exact --backend openvino": "--backend has no effect beside --exact",
    "qat --find-lr --resume": "--resume has no effect beside --find-lr",
    "train sample --find-lr --output out": "--output has no effect beside --find-lr",
    "qat --nesterov": "--nesterov has no effect without --optimizer sgd",
    "qat --bn-epochs 3": "--bn-epochs has no effect without --branches live",
    "qat --label-smoothing 0.1": "--label-smoothing has no effect without --labels",
    "calibrate --arch s0 --max-kl 0.1": "--max-kl has no effect without --grids both",
    "calibrate --arch s0 --no-head": "--no-head has no effect without --features",
    "calibrate --arch s0 --image-size 64": "leave out --image-size",
    "info --runs 3": "--runs has no effect without --arch",
    "compare runs/s0 --format csv --json": "--format has no effect beside --json",
    "doctor --from score.json": "RUN and --from are for the archive of --report",
    "doctor runs/s0": "RUN and --from are for the archive of --report",
    "build-engine --bundle b --triton t": "--bundle and --triton each write a folder of their own",
    "build-engine --triton t --deepstream d": "--triton and --deepstream each write a folder",
    "build-engine --triton t --with-reference val": "--with-reference goes into a bundle",
    "build-engine --fp16 --keep-float stem": "--keep-float is for the INT8 engine",
    "build-engine --int8 --fp16 --bundle b": "--bundle is for one precision; give one of --int8 and --fp16",
    "build-engine --deepstream d --backend openvino": "leave --backend openvino out",
}


@pytest.mark.parametrize("line", WITHOUT_EFFECT)
def test_an_option_without_effect_is_refused(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert WITHOUT_EFFECT[line] in refused(*line.split())
    assert not list(tmp_path.iterdir())


def test_a_config_may_have_options_that_the_command_line_puts_out_of_effect(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("output: out\n")
    assert "is not a finished run" in refused("qat", "--config", config, "--find-lr", tmp_path)
    config.write_text("output: out\nfind-lr: true\n")
    assert "--output has no effect beside --find-lr" in refused("qat", "--config", config, tmp_path)
    config.write_text("nesterov: true\noptimizer: sgd\n")
    assert "is not a finished run" in refused("qat", "--config", config, "--optimizer", "adamw", tmp_path)


def test_options_name_others_that_there_are():
    named = {
        name.partition("=")[0]
        for command in COMMANDS.values()
        for param in command.params
        for name in (*getattr(param, "replaces", ()), getattr(param, "needs", ""))
    }
    assert named - {""} <= {param.name for command in COMMANDS.values() for param in command.params}


def test_the_list_of_commands_is_never_cut():
    text = " ".join(help_of().split())
    assert text.count("...") == 1  # in the line of usage
    for command in main.commands.values():
        assert " ".join((command.help or "").split("\n\n")[0].split()) in text


def test_options_stand_in_sections():
    text = help_of("qat")
    headings = ["Images and output:", "Fine-tuning:", "Training:", "Augmentation:", "Every command:"]
    places = [text.index(f"\n{heading}\n") for heading in headings]
    assert places == sorted(places)
    assert text.index("--resume") < places[1]
    assert "\n  [RUN]" not in text  # an argument is no option


def test_json_is_all_that_is_printed(sample_run):
    run = sample_run("tensorrt")
    for words in (["report", run], ["verify", run], ["compare", run, run]):
        json.loads(invoke(*words, "--json"))
    made = json.loads(invoke("report", run, "--json"))
    assert made["run"] == str(run)
    assert made["verdict"].startswith("INT8 ")
    written = json.loads((run / "report.json").read_text())
    assert made["report"] == {key: value for key, value in written.items() if key != "digest"}


def test_quiet_prints_nothing_but_errors(sample_run, tmp_path):
    run = sample_run("tensorrt")
    assert invoke("profile", run, "-q", "--backend", "tensorrt", code=1).startswith("error: ")
    assert invoke("report", run, "-q") == ""
    assert invoke("verify", run, "-q") == ""
    assert invoke("report", tmp_path, "-q", code=1).startswith("error: ")


def test_verbose_says_where_an_error_arose(tmp_path):
    before = logging.root.handlers[:]
    try:
        assert "Traceback" not in invoke("report", tmp_path, code=1)
        assert "Traceback" in invoke("report", tmp_path, "-v", code=1)
    finally:
        logging.root.handlers[:] = before


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["calibrate", "--arch", "S0"], "s0"),
        (["calibrate", "--arch", "s0", "--target", "trt"], "tensorrt"),
        (["roofline", "--arch", "s0", "--device", "orin"], "orin-"),
    ],
)
def test_values_are_suggested(words, meant):
    assert f"did you mean {meant}" in invoke(*words, code=2)


def test_keys_of_a_config_are_suggested(tmp_path):
    (tmp_path / "c.yaml").write_text("imagse: 3\n")
    output = invoke("calibrate", "--config", tmp_path / "c.yaml", "--arch", "s0", code=1)
    assert "imagse; did you mean images?" in output


def test_architectures_are_completed():
    words = {"COMP_WORDS": "mobileone-q calibrate --arch s", "COMP_CWORD": "3"}
    result = CliRunner().invoke(
        main, prog_name="mobileone-q", env={"_MOBILEONE_Q_COMPLETE": "bash_complete", **words}
    )
    assert {"plain,s0", "plain,s4-face-conv"} <= set(result.output.split())


SHOW = textwrap.dedent("""
    import sys
    sys.path.insert(0, {root!r})
    from dataclasses import replace
    from calibrate.sensitivity import BlockSensitivity
    from cli import main
    from mobileone_q.evaluation.metrics import EngineParity, Parity
    from mobileone_q.report import terminal
    from tests.helpers.records import LATENCY, make_report
    block = BlockSensitivity("stage3.10.dw", 0.1, 0.2, 1.0, -10.0, (1, 22, 333), (1, 22, 333), ("scale",) * 3)
    types = dict(types="INT8 in, FP16 out", is_fallback=True, reformats=2)
    layers = tuple(replace(row, name="stage3.10.dw", **types) for row in LATENCY.layers)
    names = ("fp32 tensorrt-rtx", "int8 exact fp16", "int8 simulation")
    rows = tuple(EngineParity(name, "int8 simulation", 10.5, 1.0, 1.0, 10.01, None) for name in names)
    terminal.print_report(make_report(latency=replace(LATENCY, layers=layers)))
    terminal.print_latency(replace(LATENCY, fp16=None, fp16_sum_ms=None))
    terminal.print_parity(Parity(4, rows, {{}}))
    terminal.print_sensitivity([block], 100)
    for words in ("roofline --arch s3 --device orin-nano", "info --arch s0 --runs 1", "info", "--help"):
        main(words.split(), standalone_mode=False)
""")


def in_a_terminal(script, columns=80):
    """What a script prints on a pseudo terminal, as lines; colours are left out."""
    own, its = pty.openpty()
    ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    environment |= {"TERM": "dumb", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=its, stderr=its, stdin=its, env=environment
    )
    os.close(its)
    parts = []
    while True:
        try:
            part = os.read(own, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(own)
    text = b"".join(parts).decode()
    assert process.wait(60) == 0, text
    return text.replace("\r\n", "\n").splitlines()


ON_RUNS = textwrap.dedent("""
    for words in {commands!r}:
        try:
            main(words.split(), standalone_mode=False)
        except SystemExit:
            pass  # an error; its line is left to the terminal to wrap
""")


def test_everything_fits_80_columns(bundled, tmp_path, monkeypatch):
    """One process shows all, since importing torch takes most of the time."""
    for name in ("clothes-calibrated-on-200-images", "b"):
        shutil.copytree(bundled[0], tmp_path / "runs" / name)
    (tmp_path / "runs" / "b" / "fp32.onnx").write_bytes(b"changed")
    one = "runs/clothes-calibrated-on-200-images"
    commands = [
        f"compare {one} {one}", f"benchmark --images 10 --runs 1 {one}", "runs list", "verify runs/b",
        "doctor", f"evaluate --images 10 {one}", f"evaluate --parity --images 10 {one}",
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    lines = in_a_terminal((SHOW + ON_RUNS).format(root=str(ROOT), commands=commands))
    lines = [line for line in lines if not line.startswith("error: ")]
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    text = "\n".join(lines)
    assert "…" not in text
    for cells in (
        "stage3.10.dw 0.10000 0.20000 +1.00 -10.00 1, 22, 333 1, 22, 333",
        "fp32 tensorrt-rtx int8 simulation 10.5000 100.00 % 100.0 % 10.0100 no labels",
        "slower INT8>FP16 +2r!",
        "run target FP32 % INT8 %", "FP32 ms INT8 ms", "img/s", "MobileOne-S0 for 32x32 images",
        "changed fp32.onnx", "onnx opset 17", "confidence", "int8 onnxruntime int8 simulation",
    ):  # fmt: skip
        assert cells in " ".join(text.split()), cells
    assert text.startswith("INT8 keeps")  # the verdict comes first
