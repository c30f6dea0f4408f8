"""Architecture files that no machine could build, or that are damaged, are refused at once."""

import os
import time

import pytest
import yaml

from mobileone_q.architecture.config import read_architecture
from mobileone_q.errors import ArchitectureError
from tests.helpers.cli import refused


@pytest.mark.parametrize(
    "change",
    [
        {"input_filters": 10**23},
        {"input_size": 10**9},
        {"input_size": [65536, 65536]},
        {"num_classes": 10**12},
        {"blocks": [{"filters": 8, "depth": 100_000_000}]},
        {"blocks": [{"filters": 65536, "depth": 1000, "padding": 1}]},
        {"blocks": [{"filters": 8}] * 1000},
        {"blocks": [{"filters": 8, "se_depth": 1, "se_ratio": 1e-300}]},
        {"blocks": [{"filters": 8, "num_conv_branches": 10**9}]},
    ],
    ids=str,
)
def test_a_network_that_no_machine_holds_is_refused_at_once(tmp_path, change):
    path = tmp_path / "huge.yaml"
    path.write_text(yaml.safe_dump({"blocks": [{"filters": 8, "padding": 1}]} | change))
    started = time.monotonic()
    refused("info", "--arch", path, "--runs", 0)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("deep", ["blocks: " + "[" * 900, "[" * 900 + "]" * 900, "{a: " * 900])
def test_deep_nesting_is_refused(tmp_path, deep):
    (tmp_path / "a.yaml").write_text(deep)
    with pytest.raises(ArchitectureError):
        read_architecture(tmp_path / "a.yaml")


def test_a_fifo_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(ArchitectureError, match="not a regular file"):
        read_architecture(tmp_path / "a.yaml")
