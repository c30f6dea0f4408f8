"""`make audit` fails on a hole, and where nothing could be looked up."""

from tests.helpers.audit import judge

GOOD = {"name": "numpy", "version": "2.4", "vulns": []}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}
HOLE = {"name": "pillow", "version": "9.0", "vulns": [{"id": "CVE-1", "fix_versions": ["9.1"]}]}


def test_a_hole_is_named_with_its_fix():
    code, lines = judge([GOOD, HOLE, SKIPPED])
    assert code == 1
    assert lines[0] == "pillow 9.0: CVE-1, mended in 9.1"
    assert lines[-1] == "packages not looked up (1): torch"


def test_what_is_known_and_whole_passes():
    assert judge([GOOD, GOOD, SKIPPED]) == (
        0,
        ["0 known holes in 2 packages", "packages not looked up (1): torch"],
    )


def test_an_index_without_advisories_proves_nothing():
    code, lines = judge([GOOD, SKIPPED, SKIPPED])
    assert code == 1
    assert "nothing is proven" in lines[-1]
