"""The page in a real browser: it sorts, filters, groups and saves what report.json says, at any width."""

import csv
import json
import time

import pytest

from mobileone_q.report.html import write_html
from mobileone_q.report.schema import Report
from tests.helpers.browser import chromium, missing_program
from tests.helpers.records import make_manifest

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        bool(missing_program()), reason=f"needs Debian's chromium and chromedriver: no {missing_program()}"
    ),
]
HOSTILE = ("<script>alert(1)</script>", "\u202egpj.exe", "🐈‍⬛ cat", "w" * 500, "\" onload='x'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def browser(folder):
    with chromium(folder) as started:
        yield started


@pytest.fixture
def report(bundled, browser):
    browser.show_as(1280)
    browser.open(bundled[0] / "report.html")
    return json.loads((bundled[0] / "report.json").read_text())


def shown(browser, column=1):
    """(block, text of a column) of the rows that can be seen, from the top."""
    script = """
        return [...document.querySelectorAll("#blocks tr.block")]
            .filter((row) => row.offsetParent !== null)
            .map((row) => [row.cells[0].innerText.trim(), row.cells[arguments[0]].innerText.trim()])"""
    return [tuple(row) for row in browser.run(script, column)]


def columns(browser):
    return browser.run('return [...document.querySelectorAll("#blocks th")].map((th) => th.innerText.trim())')


def test_sorting_follows_the_figures_of_the_report(browser, report):
    layers = report["latency"]["layers"]
    titles = [title.split(" ↑")[0] for title in columns(browser)]
    assert [name for name, _ in shown(browser)] == [row["name"] for row in layers]
    for key, field, title in (("fp32", "fp32_ms", "FP32 ms"), ("int8", "int8_ms", "INT8 ms")):
        browser.click(f'th[data-key="{key}"] button')
        expected = sorted(layers, key=lambda row: -row[field])
        assert shown(browser, titles.index(title)) == [(r["name"], f"{r[field]:.3f}") for r in expected]
    browser.click('th[data-key="int8"] button')
    assert [name for name, _ in shown(browser)] == [
        row["name"] for row in sorted(layers, key=lambda row: row["int8_ms"])
    ]
    browser.click('th[data-key="order"] button')
    assert [name for name, _ in shown(browser)] == [row["name"] for row in layers]


def test_filtering_and_grouping(browser, report):
    layers = report["latency"]["layers"]
    browser.click('[data-filter="depthwise"]')
    assert [name for name, _ in shown(browser)] == [r["name"] for r in layers if r["name"].endswith(".dw")]
    browser.click('[data-filter="stem"]')
    assert [name for name, _ in shown(browser)] == ["stem"]
    browser.click('[data-filter=""]')
    browser.click("#group")
    stages = browser.run(
        'return [...document.querySelectorAll("#blocks tr.stage")].filter((r) => r.offsetParent)'
        ".map((r) => [r.dataset.stage, r.cells[1].innerText])"
    )
    sums = {}
    for row in layers:
        stage = row["name"].split(".")[0]
        sums[stage] = sums.get(stage, 0) + row["fp32_ms"]
    assert stages == [[stage, f"{ms:.3f}"] for stage, ms in sums.items()]


def test_downloads_hold_what_the_report_says(browser, report, folder):
    for name in ("report.json", "blocks.csv"):
        (folder / name).unlink(missing_ok=True)
    browser.devtools("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    browser.click('[data-download="json"]')
    assert saved(folder / "report.json", json.loads).items() <= report.items()
    browser.click('[data-download="csv"]')
    rows = list(csv.DictReader(saved(folder / "blocks.csv", str).splitlines()))
    assert [(row["block"], float(row["int8_ms"])) for row in rows] == [
        (row["name"], row["int8_ms"]) for row in report["latency"]["layers"]
    ]


def saved(path, read):
    """A download's content, as soon as it is there."""
    for _ in range(100):
        if path.is_file() and path.stat().st_size:
            return read(path.read_text(encoding="utf-8"))
        time.sleep(0.05)
    raise AssertionError(f"no {path}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 768, 390, 320])
def test_nothing_reaches_beyond_the_window(bundled, browser, folder, width, scheme):
    """Also with names that are long or not what they seem."""
    manifest = make_manifest(classes=(HOSTILE * 2), command="x" * 300)
    report = Report.load(bundled[0] / "report.json").model_copy(update={"model": HOSTILE[0]})
    write_html(report, folder / "page.html", manifest)
    browser.show_as(width, 800, scheme)
    browser.open(folder / "page.html")
    wide = browser.run("return document.documentElement.scrollWidth")
    assert wide <= width
    cut = browser.run(
        'return [...document.querySelectorAll("body *:not(svg *)")]'
        ".filter((e) => e.getBoundingClientRect().right > innerWidth + 1)"
        ".map((e) => e.outerHTML.slice(0, 80))"
    )
    assert cut == []
    bottom = browser.run('return document.querySelector(".verdict").getBoundingClientRect().bottom')
    assert bottom < 800  # the verdict is there without scrolling
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_it_prints(bundled, browser, folder, report):
    browser.pdf(folder / "report.pdf")
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF")
