"""The tables of JetPack releases and Jetson modules."""

import subprocess
import sys

import pytest

from mobileone_q.jetpack import JETPACKS, JETSON_MODULES, find_jetpack, has_dla


@pytest.mark.parametrize(
    ("l4t", "name", "tensorrt"),
    [
        ((35, 4, 1), "5.1", "8.5"),
        ((36, 2), "6.0", "8.6"),
        ((36, 4, 3), "6.1 or 6.2", "10.3"),
        ((38, 2, 0), "7.0 or 7.1", "10.13"),
    ],
)
def test_a_release_is_known_by_its_l4t(l4t, name, tensorrt):
    found = find_jetpack(l4t)
    assert (found.name, found.tensorrt) == (name, tensorrt)


def test_what_is_not_in_the_table():
    assert find_jetpack((32, 7, 1)) is None
    assert find_jetpack(()) is None
    assert len({jetpack.l4t for jetpack in JETPACKS}) == len(JETPACKS)


@pytest.mark.parametrize("module", JETSON_MODULES.values(), ids=JETSON_MODULES)
def test_modules_agree_with_what_a_board_is_called(module):
    """A board's name says whether it has DLA, and the table says how many cores."""
    assert has_dla(f"NVIDIA {module.title}") == (module.dla_cores > 0)
    assert module.fp16_tflops == pytest.approx(module.int8_tops / 2, rel=0.01)
    assert module.source


def test_it_needs_no_other_package():
    code = (
        "import sys, mobileone_q.jetpack; "
        "print({'numpy', 'torch', 'onnx', 'onnxruntime', 'click'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
