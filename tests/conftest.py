"""Fixtures for every test: the developers' folder, and runs that are made once for many tests."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers.once import folder_of_session, made_once
from tests.helpers.sample import calibrated_sample, smaller_sample, whole_sample
from tests.helpers.shared import SHARED

os.environ.setdefault("COLUMNS", "120")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
torch.set_num_threads(1)  # the networks are small, and test processes run side by side


@pytest.fixture(scope="session")
def shared() -> Path:
    """The developers' folder of real weights and images."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the developers' folder {SHARED.name}/ beside the checkout")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def quick_evaluation():
    """Commands evaluate the sample on 400 of its 2,000 images; :func:`bundled` has them all."""
    with smaller_sample():
        yield


@pytest.fixture(scope="session", autouse=True)
def one_cpu_backend():
    """``auto`` is ONNX Runtime, whichever backend is faster on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mobileone_q.runs.engines.choice.CPU_BACKENDS", ("onnxruntime",))
        yield


@pytest.fixture(scope="session")
def once(request, tmp_path_factory):
    """A function of (name, make): the folder that ``make`` filled, once for all processes; read it only."""
    folder = folder_of_session(request.config, tmp_path_factory)
    return lambda name, make: made_once(folder, name, make)


@pytest.fixture(scope="session")
def small_run_for(tmp_path_factory):
    """A function of a target: a run of a small network with random weights, made at the first call."""
    from tests.helpers.bundles import small_run

    folder = tmp_path_factory.mktemp("runs")
    return functools.cache(lambda target: small_run(folder / target, target))


@pytest.fixture(scope="session")
def bundled(once, tmp_path_factory):
    """The two commands that a newcomer types: the run's folder, and what each printed.

    The commands run once. Each process has a copy of the run, since tests build and time in it.
    """

    from tests.helpers.cli import invoke

    def make(folder: Path) -> None:
        with whole_sample(), pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            (folder / "calibrate.txt").write_text(invoke("calibrate", "--arch", "s0"))
            (folder / "build-engine.txt").write_text(invoke("build-engine", "--int8"))

    made = once("bundled", make)
    run = tmp_path_factory.mktemp("bundled") / "runs" / "s0"
    shutil.copytree(made / "runs" / "s0", run)
    return run, (made / "calibrate.txt").read_text(), (made / "build-engine.txt").read_text()


@pytest.fixture
def sample_run(once, tmp_path):
    """A function of the target: a fresh copy of the sample's run, calibrated once for all tests."""

    def copy_of_run(target: str = "tensorrt") -> Path:
        number = len(list(tmp_path.glob("sample-run*")))
        made = calibrated_sample(once, target) / "run"
        return Path(shutil.copytree(made, tmp_path / f"sample-run{number or ''}"))

    return copy_of_run
