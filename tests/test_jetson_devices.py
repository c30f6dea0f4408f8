"""The table of Jetson modules and their power modes."""

import subprocess
import sys

import pytest

from mobileone_q.jetpack import dla_is_restored, has_dla
from mobileone_q.jetson_devices import DEVICE_NAMES, JETSON_DEVICES, MODULES, find_device


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_the_highest_mode_comes_first(module):
    first, *others = module.devices()
    assert find_device(module.name) == first
    assert all(first.int8_tops >= other.int8_tops for other in others)
    assert {first.source, *(other.source for other in others)} == {first.source}
    assert all(device.fp16_tflops == device.int8_tops / 2 for device in module.devices())


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_published_rates_are_those_of_cores_and_clock(module):
    """Within 5 %, but for AGX Orin at 15 W, whose published rate is below it, as its source says."""
    for mode in module.modes:
        if mode.sparse_tops is not None and (module.name, mode.name) != ("agx-orin", "15w"):
            assert mode.derived_tops(module.operations) == pytest.approx(mode.sparse_tops / 2, rel=0.05)


def test_a_module_and_its_modes():
    """The GPU of AGX Orin by mode: DLA-SW's README; totals with DLA: the data sheets."""
    rates = [find_device(f"agx-orin@{mode}").int8_tops for mode in ("maxn", "50w", "30w", "15w")]
    assert rates == [85.5, 54.5, 20.5, 7.0]
    assert find_device("agx-orin").name == "agx-orin@maxn"
    assert find_device("orin-nano").name == "orin-nano@maxn-super"
    assert 2 * find_device("orin-nx@maxn").int8_tops == 60
    assert find_device("orin-nx").int8_tops == pytest.approx(77 / 2, rel=0.01)  # 157 in all, DLA 80
    for name in ("orin-nano-4gb", "orin-nx-8gb", "agx-orin-32gb", "agx-xavier", "thor-t4000"):
        assert name in DEVICE_NAMES
    with pytest.raises(KeyError):
        find_device("agx-orin@7w")


@pytest.mark.parametrize("device", JETSON_DEVICES.values(), ids=JETSON_DEVICES)
def test_modules_agree_with_what_a_board_is_called(device):
    """A board's name says whether it has DLA, and the table says how many cores."""
    assert has_dla(f"NVIDIA {device.title}") == (device.dla_cores > 0)
    assert dla_is_restored(f"NVIDIA {device.title}") == device.name.startswith("agx-orin")
    assert device.source


def test_it_needs_no_other_package():
    heavy = "{'numpy', 'torch', 'onnx', 'click'}"
    code = f"import sys, mobileone_q.jetson_devices; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
