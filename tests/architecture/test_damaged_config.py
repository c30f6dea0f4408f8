"""Architecture files that no machine could build, or that are damaged, are refused at once."""

import os
import time

import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from mobileone_q.architecture.config import read_architecture
from mobileone_q.errors import ArchitectureError, MobileOneQError
from tests.helpers.cli import refused
from tests.helpers.mutations import damaged, edited


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


GOOD = {
    "model_name": "tiny", "input_channels": 1, "input_size": [64], "num_classes": 3, "input_filters": 4,
    "input_kernel_size": 5, "input_padding": 2, "dropout": 0.0,
    "blocks": [{"filters": 4, "kernel_size": 5, "padding": 2, "se_depth": 1, "num_conv_branches": 2}],
}  # fmt: skip


def read_or_refuse(path):
    try:
        arch = read_architecture(path)
    except MobileOneQError:
        return
    arch.sizes()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(damaged(yaml.safe_dump(GOOD).encode()))
def test_a_damaged_file_is_read_or_refused(tmp_path, content):
    (tmp_path / "a.yaml").write_bytes(content)
    read_or_refuse(tmp_path / "a.yaml")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(edited(GOOD))
def test_a_file_with_odd_values_is_read_or_refused(tmp_path, value):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(value))
    read_or_refuse(tmp_path / "a.yaml")


@pytest.mark.parametrize("deep", ["blocks: " + "[" * 5000, "[" * 5000 + "]" * 5000, "{a: " * 3000])
def test_deep_nesting_is_refused(tmp_path, deep):
    (tmp_path / "a.yaml").write_text(deep)
    with pytest.raises(ArchitectureError):
        read_architecture(tmp_path / "a.yaml")


def test_a_fifo_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(ArchitectureError, match="not a regular file"):
        read_architecture(tmp_path / "a.yaml")
