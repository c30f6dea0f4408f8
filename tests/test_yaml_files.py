"""YAML that cannot be read is refused in one line that names the file and the option."""

import pytest

from mobileone_q.errors import ConfigError
from mobileone_q.yaml_files import read_yaml


def test_plain_values_are_read(tmp_path):
    (tmp_path / "x.yaml").write_text("a: [1, 2.5, yes]\nb: {c: ×}\n", encoding="utf-8")
    assert read_yaml(tmp_path / "x.yaml", ConfigError, "--config") == {"a": [1, 2.5, True], "b": {"c": "×"}}


NOT_YAML = [
    "a: [",
    "a: !!bool maybe",
    "a: !!int ''",
    "a: !!float x",
    "a: !!timestamp x",
    "a: 2020-13-01",
    "a: !!python/name:os.system",
    b"\xff\xfe\xff",
    "[" * 5000,
    "a: 0x" + "f" * 17,
    "a: 0" + "_" * 3,
    "a: 010",
    "a: 1\nb: 2\na: 3",
    "a: {b: 1, b: 1}",
]


@pytest.mark.parametrize("text", NOT_YAML)
def test_what_is_not_yaml_is_refused(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"x\.yaml is (not valid YAML: |nested too deeply)") as caught:
        read_yaml(path, ConfigError, "--config")
    assert str(caught.value).endswith("; check --config")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match=r"cannot read .*; check --config"):
            read_yaml(path, ConfigError, "--config")


def test_what_yaml_1_1_would_make_a_number_in_base_60_is_text(tmp_path):
    long = "9:" * 200 + "9.0"
    (tmp_path / "x.yaml").write_text(f"a: &a {{b: 5:10, c: 0:0.5, d: {long}}}\ne: {{<<: *a, b: 1}}\n")
    values = read_yaml(tmp_path / "x.yaml", ConfigError, "--config")
    assert values["a"] == {"b": "5:10", "c": "0:0.5", "d": long}
    assert values["e"]["b"] == 1  # a name may replace one that is merged
