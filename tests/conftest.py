"""Fixtures for every test: the developers' folder, and runs that are made once for many tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("COLUMNS", "120")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
torch.set_num_threads(1)  # the networks are small, and test processes run side by side
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The developers' folder of real weights and images, which a user's clone does not have."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the developers' folder {SHARED.name}/ beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def bundled(tmp_path_factory):
    """The two commands that a newcomer types, and what they printed."""
    from tests.helpers.cli import invoke

    folder = tmp_path_factory.mktemp("bundled")
    before = Path.cwd()
    os.chdir(folder)
    try:
        outputs = invoke("calibrate", "--arch", "s0"), invoke("build-engine", "--int8")
    finally:
        os.chdir(before)
    return folder / "runs" / "s0", *outputs
