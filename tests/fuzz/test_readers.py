"""Every reader answers or refuses in one line: good files, kept crashers, and damage drawn by hypothesis.

The damage here is the same on every run, and little. `make fuzz` draws other damage for five
minutes, and tests/fuzz/campaign.py as much as is asked for.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mobileone_q.files import sealed
from tests.fuzz.harness import CRASHERS, judge
from tests.fuzz.readers import harnesses
from tests.helpers.mutations import json_bytes, places, replaced, without

HARNESSES = harnesses()
NEEDS = {"shard": "webdataset", "shard-names": "webdataset", "metric-log": "tensorboard"}
EXAMPLES = 25
WRONG = (None, True, "[/x]", "", -1.5, 7, [], [None], {}, {"x": "y"}, math.nan)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for a reader, inside the one in which the test stands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOBILEONE_Q_CACHE", str(tmp_path / "cache"))
    (tmp_path / "own").mkdir()
    return tmp_path / "own"


@pytest.fixture
def harness(request):
    if request.param in NEEDS:
        pytest.importorskip(NEEDS[request.param])
    return HARNESSES[request.param]


every_reader = pytest.mark.parametrize("harness", HARNESSES, indirect=True)


@every_reader
def test_good_files_are_answered_and_kept_crashers_are_understood(harness, folder):
    for content in harness.seeds:
        outcome = judge(harness, folder, content)
        assert outcome.kind == ("answered" if harness.is_read else "refused"), outcome
    for path in harness.crashers():
        outcome = judge(harness, folder, path.read_bytes())
        assert outcome.is_right, f"{path}: {outcome}"


@every_reader
def test_damaged_files_are_answered_or_refused(harness, folder):
    @settings(
        max_examples=max(3, int(EXAMPLES * harness.weight)), deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.randoms(use_true_random=True))
    def check(random):
        content = harness.draw(random)
        outcome = judge(harness, folder, content)
        assert outcome.is_right, f"{outcome}: {content[:300]!r}"

    with contextlib.redirect_stdout(io.StringIO()):
        check()


@every_reader
def test_what_is_hostile_is_answered_or_refused(harness, folder):
    for content in harness.hostile:
        outcome = judge(harness, folder, content)
        assert outcome.is_right, f"{outcome}: {content[:300]!r}"


@pytest.mark.parametrize("name", ["report", "manifest"])
@pytest.mark.parametrize("with_all", [False, pytest.param(True, marks=pytest.mark.long)])
def test_no_place_in_a_document_is_unchecked(name, with_all, folder):
    """Each value of a sealed document is taken away, and replaced by one wrong value, or by all of them."""
    harness, kinds = HARNESSES[name], Counter()
    good = json.loads(harness.seeds[0])
    for number, place in enumerate(list(places(good))[1:]):
        wrong = WRONG if with_all else WRONG[number % len(WRONG) :][:1]
        for value in (without(good, place), *(replaced(good, place, each) for each in wrong)):
            outcome = judge(harness, folder, json_bytes(sealed(value)))
            assert outcome.is_right, f"{place}: {outcome}"
            kinds[outcome.kind] += 1
    assert kinds["refused"] > (2 if with_all else 1) * kinds["answered"] > 0


def test_every_kept_crasher_has_a_reader():
    assert {path.name for path in CRASHERS.iterdir()} <= HARNESSES.keys()
