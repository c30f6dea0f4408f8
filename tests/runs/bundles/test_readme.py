"""The page in a bundle."""

import re

import pytest

from mobileone_q.engines import BuildOptions
from mobileone_q.runs.bundles.bundle import write_bundle


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_readme_names_files_that_are_there(small_run_for, tmp_path, precision):
    folder = tmp_path / "s0 bundle"
    write_bundle(small_run_for("tensorrt"), folder, precision, BuildOptions())
    text = (folder / "README.md").read_text()
    assert text.startswith(f"# MobileOne s0 in {precision.upper()} for TensorRT\n")
    for name in re.findall(r"(?:python3 |\./)(\w+\.\w+)", text):
        assert (folder / name).is_file(), name
    assert {"./build.sh", "run_image.py", "score.py"} <= set(re.findall(r"\./build\.sh|\w+\.py", text))
    assert "batches of 1 to 8" in text
    assert "reference.npz" not in text
    assert ("still compute a layer in floating point" in text) == (precision == "int8")
    assert not re.search(r"[{}]|None|nan", text)
    assert "cd 's0 bundle'\n" in text
