"""The table of JetPack releases, and which TensorRT has DLA."""

import subprocess
import sys

import pytest

from mobileone_q.jetpack import JETPACKS, dla_form, find_jetpack


@pytest.mark.parametrize(
    ("l4t", "name", "tensorrt"),
    [
        ((35, 1, 0), "5.0.2", "8.4"),
        ((35, 4, 1), "5.1", "8.5"),
        ((36, 2), "6.0", "8.6"),
        ((36, 4, 3), "6.1 or 6.2", "10.3"),
        ((38, 2, 0), "7.0 or 7.1", "10.13"),
        ((39, 2, 1), "7.2", "10.16"),
    ],
)
def test_a_release_is_known_by_its_l4t(l4t, name, tensorrt):
    found = find_jetpack(l4t)
    assert (found.name, found.tensorrt) == (name, tensorrt)


def test_what_is_not_in_the_table():
    assert find_jetpack((32, 7, 1)) is None
    assert find_jetpack(()) is None
    assert len({jetpack.l4t for jetpack in JETPACKS}) == len(JETPACKS)


@pytest.mark.parametrize(
    ("version", "form"),
    [
        ((8, 5, 2), "cache"),
        ((10, 7, 0), "cache"),
        ((10, 8, 0), None),
        ((10, 16, 1), None),
        ((11, 0, 0), None),
        ((11, 4, 0), None),
        ((11, 4, 1), "qdq"),
        ((12, 0, 0), "qdq"),
    ],
)
def test_which_tensorrt_has_dla(version, form):
    """NVIDIA's TensorRT 11.4.1 documents, "Working with DLA"."""
    assert dla_form(version) == form


def test_it_needs_no_other_package():
    code = (
        "import sys, mobileone_q.jetpack; "
        "print({'numpy', 'torch', 'onnx', 'onnxruntime', 'click'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
