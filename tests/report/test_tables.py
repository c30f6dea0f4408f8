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
