"""Hugging Face datasets, from folders that the package itself wrote."""

import json

import pytest
from PIL import Image

from mobileone_q.data.hugging_face import HuggingFaceSource
from tests.helpers.cli import invoke, refused
from tests.helpers.odd_media import EPS

datasets = pytest.importorskip("datasets")


@pytest.fixture
def saved(tmp_path):
    """Two splits of ten images each."""
    columns = {"id": datasets.Value("int32"), "picture": datasets.Image(), "kind": datasets.ClassLabel(10)}
    pictures = [Image.new("RGB", (40, 40), (20 * k, 0, 0)) for k in range(10)]
    values = {"id": range(10), "picture": pictures, "kind": range(10)}
    rows = datasets.Dataset.from_dict(values, features=datasets.Features(columns))
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "saved")
    return f"hf:{tmp_path / 'saved'}"


def test_qat_reads_a_dataset(sample_run, saved, tmp_path):
    words = [
        "--data",
        saved,
        "--eval-data",
        f"{saved}:validation",
        "--images",
        8,
        "--epochs",
        1,
        "--batch",
        4,
    ]
    said = invoke("qat", sample_run(), *words, "--device", "cpu", "--output", tmp_path / "tuned")
    assert "training loss" in said
    assert "top1" in said  # labels are known
    report = json.loads((tmp_path / "tuned" / "report.json").read_text())
    assert report["images"]["evaluation"] == 10
    assert report["accuracy"]["int8"] is not None


def test_what_is_not_there_is_named(sample_run, saved, tmp_path, monkeypatch):
    words = ["qat", sample_run(), "--device", "cpu", "--output", tmp_path / "tuned", "--data"]
    assert "has no split test; it has train, validation" in refused(*words, f"{saved}:test")
    (tmp_path / "empty").mkdir()
    assert "cannot read hf:" in refused(*words, f"hf:{tmp_path / 'empty'}")
    monkeypatch.setenv("MOBILEONE_Q_OFFLINE", "1")
    assert "MOBILEONE_Q_OFFLINE forbids downloads" in refused(*words, "hf:someone/some-name")


def test_a_picture_of_a_format_that_runs_a_program_is_refused():
    columns = datasets.Features({"picture": datasets.Image()})
    rows = datasets.Dataset.from_dict({"picture": [{"bytes": EPS, "path": None}]}, features=columns)
    source = HuggingFaceSource.__new__(HuggingFaceSource)
    source._rows = rows.cast_column("picture", datasets.Image(decode=False))
    source._column, source._decode = "picture", datasets.Image().decode_example
    with pytest.raises(OSError, match="cannot identify"):
        source.open(0)
