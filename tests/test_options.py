from pathlib import Path

import click
import pytest
import yaml

from cli import main
from mobileone_q.architecture.config import read_architecture
from mobileone_q.errors import ConfigError, TrainingError
from mobileone_q.models.certificate import certify
from mobileone_q.options import config_path, read_config
from mobileone_q.training.settings import EpochSettings
from tests.helpers.cli import invoke, refused
from tests.helpers.networks import random_model
from tests.helpers.tiny import calibration

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def opening_command(path):
    """The command in a file's first line, and its words with the file's real place."""
    first = path.read_text().splitlines()[0].removeprefix("# ").split()
    assert first[0] == "mobileone-q"
    names = (path.stem, f"configs/{path.name}")  # by name where that is enough
    assert set(names) & set(first)
    words = [str(path) if word in names else word for word in first[2:]]
    command = main.commands[first[1]]
    return command, words, command.make_context(first[1], words)


def is_architecture(path):
    return "blocks" in yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_opens_with_a_command_that_accepts_it(path):
    command, words, context = opening_command(path)
    if is_architecture(path):
        assert context.params["arch"] == str(path)
        arch = read_architecture(path)
        assert arch.name == path.stem
        assert certify(random_model(arch)).worst < 1e-12
        return
    values = read_config(path, command.params, context.params.get("arch"))
    assert values
    params = {p.name: p for p in command.params}
    given = {p.name for p in command.params if set(p.opts) & set(words)}
    left = {
        key: params[key].type_cast_value(context, value) for key, value in values.items() if key not in given
    }
    assert left == {key: context.params[key] for key in left}


def test_a_config_has_variants_and_arch_picks_one(tmp_path):
    path = tmp_path / "variants.yaml"
    path.write_text("batch: 8\nlr: 0.1\nvariants:\n  s0: {}\n  s4: {lr: 0.2, epochs: 3}\n")
    params = main.commands["qat"].params
    assert read_config(path, params, "s0") == {"batch": "8", "lr": "0.1", "arch": "s0"}
    assert read_config(path, params, "s4") == {"batch": "8", "lr": "0.2", "epochs": "3", "arch": "s4"}
    with pytest.raises(ConfigError, match="no variant for --arch s2; its variants are s0, s4"):
        read_config(path, params, "s2")
    assert "pick one with --arch" in refused("qat", "--config", path)
    # The option may stand on either side of the file.
    for words in (("--arch", "s9"), ("--arch", "s2")):
        for line in (("--config", path, *words), (*words, "--config", path)):
            assert f"no variant for --arch {words[1]}" in refused("qat", *line)


def test_resolutions_are_pairs_of_an_epoch_and_a_side(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("resolutions: {0: 160, 37: 192, 112: 224}\n")
    params = main.commands["train"].params
    assert read_config(path, params) == {"resolutions": "0:160,37:192,112:224"}
    (option,) = (param for param in params if param.name == "resolutions")
    assert option.type.convert("0:160,37:192", None, None) == ((0, 160), (37, 192))
    with pytest.raises(click.BadParameter, match="not EPOCH:VALUE"):
        option.type.convert("160,192", None, None)
    with pytest.raises(TrainingError, match="the first must be 0"):
        EpochSettings(resolutions=((3, 160), (1, 192)))
    with pytest.raises(TrainingError, match="at least 8"):
        EpochSettings(resolutions=((0, 4),))


def test_both_kinds_of_config_are_there():
    assert {is_architecture(path) for path in CONFIGS} == {True, False}


def test_a_config_is_used_and_the_command_line_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, *words = calibration(tmp_path)
    Path("c.yaml").write_text("arch: s0\nimages: 16\ntarget: tensorrt\n")
    output = invoke("calibrate", "--config", "c.yaml", "--target", "onnxruntime", *words)
    assert "target onnxruntime" in output
    assert "on 16 images" in output


def test_a_bundled_config_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_path(Path("jetson")).read_text() == (CONFIGS[0].parent / "jetson.yaml").read_text()
    command = main.commands["calibrate"]
    context = command.make_context("calibrate", ["--config", "jetson", "--arch", "s0"])
    assert context.params["target"] == "tensorrt"


def test_a_file_of_the_same_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("jetson").write_text("images: 16\n")
    assert config_path(Path("jetson")) == Path("jetson")


def test_an_unknown_name_lists_the_bundled_ones():
    line = refused("calibrate", "--config", "jetsn", "--arch", "s0")
    assert "jetsn is neither a file nor a bundled config" in line
    assert all(path.stem in line for path in CONFIGS)


def test_unknown_options_are_listed_at_once(tmp_path):
    (tmp_path / "c.yaml").write_text("metod: mse\nimage: 3\n")
    line = refused("calibrate", "--config", tmp_path / "c.yaml", "--arch", "s0")
    assert "unknown options image, metod" in line
    assert "range_method" in line


@pytest.mark.parametrize("text", ["a: [", "- a\n- b\n", "just words"])
def test_what_is_not_a_mapping_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        read_config(tmp_path / "c.yaml", main.commands["calibrate"].params)


def test_a_bad_value_is_a_usage_error(tmp_path):
    (tmp_path / "c.yaml").write_text("range-method: magic\n")
    assert "magic" in invoke("calibrate", "--config", tmp_path / "c.yaml", "--arch", "s0", code=2)


def test_a_missing_config_is_named(tmp_path):
    assert "none.yaml" in refused("calibrate", "--config", tmp_path / "none.yaml", "--arch", "s0")
    assert isinstance(main, click.Group)
