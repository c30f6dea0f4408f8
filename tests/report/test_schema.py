"""report.json and manifest.json: what is written can be read, and damage is one line."""

import json
import math
from dataclasses import replace

import jsonschema
import pytest

from calibrate.recipe import Recipe
from mobileone_q.errors import FileError
from mobileone_q.files import DIGEST, sealed
from mobileone_q.report import schema
from mobileone_q.report.schema import Manifest, Report, json_schemas
from mobileone_q.runs.storage.folder import RunFolder
from tests.helpers.cli import invoke, refused
from tests.helpers.records import ACCURACY, make_manifest, make_report

DOCUMENTS = {"report": make_report(), "manifest": make_manifest()}


def write(document, path):
    document.save(path)
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_is_written_is_read_again(name, tmp_path):
    document, path = DOCUMENTS[name], tmp_path / f"{name}.json"
    values = write(document, path)
    assert type(document).load(path) == document
    assert next(iter(values)) == "schema"
    assert values["schema"] == 3


def test_a_report_begins_without_sections(tmp_path):
    sections = ("accuracy", "simulation", "latency", "parity", "qat", "fusion", "float_blocks")
    report = make_report(**dict.fromkeys(sections))
    values = write(report, tmp_path / "report.json")
    assert all(values[section] is None for section in sections)
    report = Report.load(tmp_path / "report.json").with_sections(accuracy=ACCURACY)
    assert report.accuracy == ACCURACY
    assert report.latency is None


def test_keys_that_scripts_rely_on(tmp_path):
    values = write(make_report(), tmp_path / "report.json")
    assert values["accuracy"]["fp32"]["top1"] == 0.75
    assert values["accuracy"]["drop_pts"] == 25.0
    assert values["accuracy"]["engine"] == "onnxruntime 1.0"
    assert values["latency"]["layers"][0]["fp32_ms"] == 1.0
    assert values["latency"]["int8"]["median_ms"] == 1.0
    assert values["images"]["calibration"] == 8
    assert values["seconds"]["calibrate"] == 2.0
    assert values["qat"]["before"] == values["accuracy"]


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("number", [1, 2, "3", None])
def test_another_schema_number_names_file_and_command(name, number, tmp_path):
    path = tmp_path / f"{name}.json"
    values = write(DOCUMENTS[name], path)
    path.write_text(json.dumps(values | {"schema": number}))
    with pytest.raises(FileError) as caught:
        type(DOCUMENTS[name]).load(path)
    line = str(caught.value)
    assert line.startswith(f"{path} has schema {number!r}, and this version reads 3")
    assert "`mobileone-q calibrate`" in line


def test_no_number_that_is_not_finite_is_written(tmp_path):
    path = tmp_path / "report.json"
    report = make_report(accuracy=replace(ACCURACY, kl=math.nan))
    with pytest.raises(FileError, match=r"cannot write .*report\.json: accuracy\.kl: .*finite number"):
        report.save(path)
    with pytest.raises(FileError, match=r"latency\.speedup"):
        make_report(latency=replace(make_report().latency, speedup=math.inf)).save(path)
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"report"', "{}", '{"schema": 2}', '{"schema": 3}'])
@pytest.mark.parametrize("document", [Report, Manifest])
def test_what_is_no_document_is_one_line(document, text, tmp_path):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(FileError, match="again") as caught:
        document.load(path)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def broken(bundled, tmp_path_factory):
    """A copy of the sample's run in which one file at a time is damaged."""
    import shutil

    return RunFolder(shutil.copytree(bundled[0], tmp_path_factory.mktemp("broken") / "run"))


@pytest.mark.parametrize(
    ("command", "name", "key"),
    [
        (("report",), "report", "accuracy"),
        (("build-engine", "--int8"), "manifest", "target"),
        (("build-engine", "--int8", "--bundle", "bundle"), "manifest", "target"),
        (("profile",), "report", "model"),
        (("profile",), "manifest", "target"),
        (("evaluate",), "manifest", "preprocessing"),
        (("evaluate", "--parity"), "report", "images"),
        (("predict", "image.png", "--run"), "manifest", "classes"),
        (("qat", "--device", "cpu"), "manifest", "seed"),
        (("qat", "--device", "cpu"), "report", "images"),
    ],
)
def test_commands_name_the_damaged_field(broken, tmp_path, monkeypatch, command, name, key):
    monkeypatch.chdir(tmp_path)
    path = broken.path / f"{name}.json"
    whole = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(whole) | {key: {"no": "such thing"}}))
        line = refused(*command, broken.path)
        path.write_text(json.dumps(json.loads(whole) | {"schema": 1}))
        older = refused(*command, broken.path)
    finally:
        path.write_text(whole)
    assert f"{path} is damaged: {key}" in line
    assert "run again with `mobileone-q calibrate`" in line
    assert f"{path} has schema 1, and this version reads 3" in older
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("signals", "blocks", 0, "ranges_after"), [0.1, 0.5, 1.0]),
        (("changes", "confidence", "counts"), []),
    ],
)
def test_lists_that_a_page_draws_have_their_length(bundled, tmp_path, keys, value):
    values = json.loads((bundled[0] / "report.json").read_text())
    *way, last = keys
    place = values
    for key in way:
        place = place[key]
    place[last] = value
    path = tmp_path / "report.json"
    path.write_text(json.dumps(sealed({key: each for key, each in values.items() if key != DIGEST})))
    with pytest.raises(FileError, match=f"damaged: {keys[0]}.*{last}"):
        Report.load(path)


def test_the_json_schemas_are_current():
    """After a change to a type, run `python -m mobileone_q.report.schema`."""
    folder = schema.__file__.removesuffix("schema.py")
    for name, text in json_schemas().items():
        with open(folder + name, encoding="utf-8") as file:
            assert json.load(file) == json.loads(text), name


def validator(name):
    values = json.loads(json_schemas()[f"{name}.schema.json"])
    jsonschema.Draft202012Validator.check_schema(values)
    return jsonschema.Draft202012Validator(values)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_real_run_follows_the_json_schemas(bundled, name, tmp_path):
    invoke("evaluate", bundled[0], "--parity", "--images", 20)
    for path in (bundled[0] / f"{name}.json", tmp_path / f"{name}.json"):
        values = json.loads(path.read_text()) if path.is_file() else write(DOCUMENTS[name], path)
        validator(name).validate(values)
    del values["arch"]
    with pytest.raises(jsonschema.ValidationError, match="'arch' is a required property"):
        validator(name).validate(values)


def test_every_recipe_can_be_recorded(tmp_path):
    recipe = Recipe(keep_float=("stem", "head"))
    make_manifest(recipe=recipe.to_dict()).save(tmp_path / "manifest.json")
    recorded = Manifest.load(tmp_path / "manifest.json").recipe
    assert recorded == json.loads(json.dumps(recipe.to_dict())) | {"keep_float": ("stem", "head")}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_an_edit_that_still_makes_sense_is_refused(name, tmp_path):
    path = tmp_path / f"{name}.json"
    values = write(DOCUMENTS[name], path)
    path.write_text(json.dumps(values))  # other spaces are no edit
    assert type(DOCUMENTS[name]).load(path) == DOCUMENTS[name]
    path.write_text(json.dumps(values | {"arch": "s1"}))
    with pytest.raises(FileError, match="has changed since it was written") as caught:
        type(DOCUMENTS[name]).load(path)
    assert str(caught.value).startswith(f"{path} ")
    assert "`mobileone-q calibrate`" in str(caught.value)
