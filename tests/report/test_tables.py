import csv
import io
import json

import pytest

from mobileone_q.names import FORMS
from mobileone_q.report.tables import UNKNOWN, Column, render

COLUMNS = (Column("name", "name"), Column("kl", "KL", ".2f"), Column("ms", "ms", ".1f"))
ROWS = [{"name": "a|<b>", "kl": 0.123456, "ms": None}, {"name": "long name", "kl": None, "ms": None}]


def test_a_table_has_a_line_per_row_and_no_empty_column():
    first, *rows = render(ROWS, COLUMNS, "table").splitlines()
    assert first.split() == ["name", "KL"]
    assert rows == ["a|<b>      0.12", f"long name     {UNKNOWN}"]


def test_a_table_for_a_narrow_terminal_goes_on_below_and_wraps_text():
    columns = (Column("name", "name"), *(Column(key, key, ".3f") for key in "abcd"), Column("note", "note"))
    row = {
        "name": "a rather long name of a run",
        **dict.fromkeys("abcd", 1.5),
        "note": "six words that say too much",
    }
    text = render([row], columns, "table", 24)
    assert max(map(len, text.splitlines())) <= 24
    parts = [part.splitlines() for part in text.split("\n\n")]
    assert [part[0].split() for part in parts] == [
        ["name", "a"],
        ["name", "b"],
        ["name", "c"],
        ["name", "d"],
        ["name", "note"],
    ]
    assert " ".join(line[:12].strip() for line in parts[0][1:]) == row["name"]
    assert " ".join(line[12:].strip() for line in parts[-1][1:]).strip() == row["note"]
    assert render([row], columns, "table", 200) == render([row], columns, "table")


def test_json_and_csv_are_not_rounded():
    assert json.loads(render(ROWS, COLUMNS, "json"))[0] == {"name": "a|<b>", "kl": 0.123456}
    assert next(csv.DictReader(io.StringIO(render(ROWS, COLUMNS, "csv"))))["kl"] == "0.123456"


def test_markup_stays_text():
    assert "a\\|<b>" in render(ROWS, COLUMNS, "markdown")
    assert "<td>a|&lt;b&gt;</td>" in render(ROWS, COLUMNS, "html")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_every_row(form):
    text = render(ROWS, COLUMNS, form)
    assert "long name" in text
    assert "0.12" in text
