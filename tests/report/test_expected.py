import json
import re

import pytest

from mobileone_q.architecture.variants import build_variant
from mobileone_q.evaluation.estimate import estimate, published_fit
from mobileone_q.evaluation.roofline import block_bounds
from mobileone_q.jetson_devices import find_device
from mobileone_q.report.expected import expected_on
from tests.helpers.cli import invoke
from tests.helpers.records import make_report

ARCH = build_variant("s0", image_size=32, num_classes=10)


def test_bound_and_estimate_are_those_of_roofline():
    device = find_device("orin-nano")
    found = expected_on(device, ARCH, make_report(latency=None))
    bounds = block_bounds(ARCH, device)
    assert [row.int8_us for row in found.rows] == [bound.int8.least_us for bound in bounds]
    assert found.bound_us[1] == pytest.approx(sum(bound.int8.least_us for bound in bounds))
    assert found.estimates == estimate(ARCH, device, 1, published_fit())["us"]
    assert found.measured_us is None
    assert "measured" not in found.describe()


def test_the_page_shows_them_beside_the_measurement(bundled):
    run = bundled[0]
    said = invoke("report", run, "--device", "agx-orin@30w")
    latency = json.loads((run / "report.json").read_text())["latency"]
    page = (run / "report.html").read_text()
    assert re.search(r"What .*AGX Orin.* allows, beside what was measured", page)
    table = page[page.index('id="expected"') :]
    table = table[: table.index("</table>")]
    assert table.count("<tr>") == 1 + len(ARCH.blocks) + 2
    for row in latency["layers"]:
        assert f"{1000 * row['int8_ms']:.1f}</td>" in table
    assert "by published rates" in said
    assert latency["runtime"] in said.rsplit("measured", 1)[1]
    invoke("report", run)
    assert "allows, beside what was measured" not in (run / "report.html").read_text()
