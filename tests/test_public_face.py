"""What `import mobileone_q` offers, and what it costs to import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mobileone_q as mq

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
STUB = Path(mq.__file__).with_suffix(".pyi")


def in_a_fresh_process(code, **environment):
    import os

    inherited = {key: value for key, value in os.environ.items() if key not in WAITING}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=inherited | environment
    )
    assert not ran.returncode, ran.stderr
    return ran.stdout.strip()


def test_every_public_name_is_there_and_documented():
    assert sorted(mq.__all__) == mq.__all__
    assert set(mq.__all__) <= set(dir(mq))
    for name in mq.__all__:
        assert getattr(mq, name).__doc__, name


def test_the_stub_and_the_package_offer_the_same():
    names = {
        alias.asname
        for node in ast.parse(STUB.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert names == set(mq.__all__)


def test_importing_brings_in_no_torch():
    heavy = ("torch", "numpy", "onnx", "onnxruntime", "PIL", "pydantic")
    loaded = in_a_fresh_process(
        f"import sys, mobileone_q; print([name for name in {heavy} if name in sys.modules])"
    )
    assert loaded == "[]"


@pytest.mark.parametrize(
    ("set_before", "expected"),
    [
        ({}, ["PASSIVE", "4000"]),
        ({"GOMP_SPINCOUNT": "7"}, ["PASSIVE", "7"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", None]),
    ],
)
def test_waiting_threads_soon_sleep_unless_the_user_says_otherwise(set_before, expected):
    code = f"import os, mobileone_q; print([os.environ.get(name) for name in {WAITING}])"
    assert in_a_fresh_process(code, **set_before) == str(expected)


def test_calibrate_imported_first_leaves_openmp_its_policy_too():
    """OpenMP reads the variable when torch is imported, and modules of ``calibrate`` import torch."""
    code = "import calibrate, sys; print('mobileone_q' in sys.modules, 'torch' in sys.modules)"
    assert in_a_fresh_process(code) == "True False"
