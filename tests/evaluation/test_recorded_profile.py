"""A recording with odd values is shown or refused, and nothing else happens."""

import contextlib
import json

from hypothesis import HealthCheck, given, settings

from mobileone_q.errors import MobileOneQError
from mobileone_q.evaluation.recorded_profile import latency_from
from mobileone_q.report.terminal import print_latency
from tests.helpers.cli import BLOCKS
from tests.helpers.mutations import damaged, edited

PROFILE = [{"count": 5}, *({"name": name, "medianMs": 1.0} for name in BLOCKS[:3])]
LAYERS = {"Layers": [{"Name": "stem", "Outputs": [{"Name": "a"}], "Metadata": ""}], "Bindings": ["input"]}
ENGINE = {"version": "10", "profile": PROFILE, "layers": LAYERS, "latency_ms": {"median": 3.0, "p95": 4.0}}
GOOD = {"arch": "s0", "device": "a", "batch": 1, "engines": {"fp32": ENGINE, "fp16": ENGINE, "int8": ENGINE}}
CHECK = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


def show_or_refuse(path):
    with contextlib.suppress(MobileOneQError):
        print_latency(latency_from(path))


@CHECK
@given(edited(GOOD))
def test_odd_values_are_shown_or_refused(tmp_path, value):
    (tmp_path / "a.json").write_text(json.dumps(value))
    show_or_refuse(tmp_path / "a.json")


@CHECK
@given(damaged(json.dumps(GOOD).encode()))
def test_damaged_bytes_are_shown_or_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    show_or_refuse(tmp_path / "a.json")
