import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from mobileone_q.checkpoints.load import save_model
from mobileone_q.data import sample
from mobileone_q.models.fused import FusedModel
from tests.helpers.cli import BLOCKS, invoke, refused
from tests.helpers.html_page import read_page
from tests.helpers.networks import random_model, small
from tests.helpers.sample import calibrated_sample, whole_sample
from tests.helpers.tiny import image_network


def test_the_sample_is_what_it_says():
    size = sum(path.stat().st_size for path in (sample.WEIGHTS, sample.IMAGES))
    assert size < 14e6
    for split, count in (("calibration", 500), ("evaluation", 2000)):
        with whole_sample():
            images, labels = sample.images(split)
        assert images.shape == (count, 28, 28)
        assert np.bincount(labels).tolist() == [count // 10] * 10


def test_bundled_run_prints_drop_and_latency(bundled):
    _, calibrate, build = bundled
    assert sample.NAME in calibrate
    assert "with branches" in calibrate
    drop = re.search(r"accuracy drop +([+-][\d.]+) points", calibrate)
    assert drop
    assert float(drop[1]) < 1.0
    for name in BLOCKS:
        assert re.search(rf"{re.escape(name)} .*\d\.\d+ .*\d\.\d+ .*\d\.\d\dx", build), name
    assert "end to end: FP32" in build


def test_bundled_run_folder_is_complete(bundled):
    run, *_ = bundled
    for name in ("fused.safetensors", "quantized.safetensors", "fp32.onnx", "int8.onnx", "report.html"):
        assert (run / name).stat().st_size > 10_000, name
    manifest = json.loads((run / "manifest.json").read_text())
    assert len(manifest["weights"]["sha256"]) == len(manifest["images"]["sha256"]) == 64
    assert manifest["seed"] == 0
    assert manifest["recipe"]["range_method"] == "mse"
    assert {"mobileone-q", "torch", "onnxruntime"} <= manifest["versions"].keys()
    assert not list(run.rglob(".*"))


def test_bundled_report_holds_the_contract(bundled):
    report = json.loads((bundled[0] / "report.json").read_text())
    assert report["schema"] == 3
    assert report["images"]["calibration"] == 200
    assert report["images"]["evaluation"] == 2000
    accuracy = report["accuracy"]
    assert accuracy["fp32"]["top1"] >= 0.90
    assert accuracy["agreement"] > 0.96
    assert accuracy["kl"] < 0.02
    assert accuracy["drop_ci95_pts"][0] < accuracy["drop_pts"] < accuracy["drop_ci95_pts"][1]
    assert report["seconds"].keys() >= {"fuse", "calibrate"}
    assert report["fusion"]["worst"] < 1e-12
    latency = report["latency"]
    assert [row["name"] for row in latency["layers"]] == BLOCKS
    assert latency["speedup"] == latency["fp32"]["median_ms"] / latency["int8"]["median_ms"]
    simulation = report["simulation"]
    assert simulation["agreement"] > 0.9
    assert abs(simulation["kl"] - simulation["engine_kl"]) < 0.01


def test_html_report_shows_every_block(bundled):
    page = read_page(bundled[0] / "report.html")  # which also checks that it loads nothing
    for word in (sample.NAME, "accuracy drop", "speed-up", *BLOCKS):
        assert word in page.text
    report = json.loads((bundled[0] / "report.json").read_text())
    assert page.data["report"] == {key: value for key, value in report.items() if key != "digest"}


def test_report_prints_it_again(bundled):
    output = invoke("report", bundled[0])
    assert "accuracy drop" in output
    assert "stage3.9.dw" in output


def test_profile_times_again(bundled):
    invoke("profile", bundled[0], "--runs", 3, "--batch", 2)
    assert json.loads((bundled[0] / "report.json").read_text())["latency"]["batch"] == 2


def test_a_second_run_does_not_touch_the_first(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("calibrate", *image_network(tmp_path), "--data", images)
    assert "runs/narrow" in invoke(*words)
    first = tmp_path / "runs" / "narrow"
    before = {p: p.stat().st_mtime_ns for p in first.rglob("*")}
    assert "runs/narrow-2" in invoke(*words)
    assert before == {p: p.stat().st_mtime_ns for p in first.rglob("*")}
    assert "runs/narrow-2" in invoke("build-engine", "--fp32")  # the newest run is the default


def test_rtx_engine_from_the_command_line(sample_run):
    pytest.importorskip("tensorrt_rtx", reason="needs the extra [rtx]")
    run = sample_run("tensorrt")
    output = invoke("build-engine", run, "--backend", "tensorrt-rtx", "--compute-capability", 86)
    assert "int8.tensorrt-rtx.plan" in output
    if not torch.cuda.is_available():
        assert "needs an NVIDIA GPU" in output


def test_every_precision_and_its_graph_from_the_command_line(sample_run):
    pytest.importorskip("tensorrt_rtx", reason="needs the extra [rtx]")
    run = sample_run("tensorrt")
    words = (run, "--backend", "tensorrt-rtx", "--compute-capability", 86, "--batch", "1:2:4")
    output = invoke("build-engine", "--fp16", *words)
    assert [Path(line.split()[1]).name[:4] for line in output.splitlines() if "built" in line] == [
        "fp32",
        "fp16",
    ]
    facts = json.loads((run / "engines" / "fp16.tensorrt-rtx.plan.json").read_text())
    assert (facts["onnx"], facts["options"]["batch"]) == ("fp16.onnx", [1, 2, 4])
    assert "no version-compatible engines" in refused("build-engine", *words, "--version-compatible")
    assert "no DLA" in refused("build-engine", "--fp16", *words, "--dla", 0)
    assert "not DLA; calibrate again with --target dla" in refused("build-engine", *words, "--dla", 0)


@pytest.mark.parametrize("batch", ["0", "4:2:8", "1:2", "x"])
def test_a_batch_that_is_none_is_a_usage_error(batch):
    assert "MIN:OPT:MAX" in invoke("build-engine", "--batch", batch, code=2)


def test_engines_are_compared_on_the_same_images(bundled):
    invoke("evaluate", bundled[0], "--parity", "--images", 100)
    parity = json.loads((bundled[0] / "report.json").read_text())["parity"]
    assert parity["images"] == 100
    rows = {row["name"]: row for row in parity["engines"]}
    assert rows.keys() >= {"fp32 torch", "int8 simulation", "fp32 onnxruntime", "int8 onnxruntime"}
    assert rows["fp32 onnxruntime"]["relative"] < 1e-4
    assert rows["int8 onnxruntime"]["agreement"] > 0.9
    assert rows["int8 onnxruntime"]["largest_difference"] > 0
    assert rows["fp32 onnxruntime"]["top1"] > 0.8
    assert rows["int8 onnxruntime"]["kl"] > rows["fp32 onnxruntime"]["kl"]


def test_a_run_for_dla(once, sample_run):
    """INT8 accuracy is the simulation's: the graph alone would show FP32's and call it INT8's."""
    run = sample_run("dla")
    output = (calibrated_sample(once, "dla") / "said.txt").read_text(encoding="utf-8")
    assert "simulation (DLA runs on the device alone)" in " ".join(output.split())
    assert "next: mobileone-q build-engine --int8 --dla 0 " in output
    assert (run / "int8.calib").read_text().startswith("TRT-8502-EntropyCalibration2\ninput: ")
    report = json.loads((run / "report.json").read_text())
    assert report["accuracy"]["kl"] > 1e-4
    output = invoke("evaluate", run, "--parity", "--images", 50)
    message = refused("build-engine", run, "--backend", "onnxruntime")
    assert "--dla 0 --bundle FOLDER, or calibrate again with --target onnxruntime" in message
    assert "pass --dla 0" in refused("build-engine", run, "--backend", "tensorrt")
    assert "int8 onnxruntime" not in output


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twelve noise images in two classes."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for number in range(12):
        path = root / str(number % 2) / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "own.safetensors"
    save_model(random_model(small()), path)
    return path


def test_own_weights_and_images(images, tmp_path):
    words = (*image_network(tmp_path), "--data", images, "--images", 8, "--target", "tensorrt")
    output = invoke("calibrate", *words, "--output", tmp_path / "run")
    assert "accuracy on 4 images" in output  # those not drawn for calibration
    kinds = [node.op_type for node in onnx.load(tmp_path / "run" / "int8.onnx").graph.node]
    assert (kinds.count("Conv"), kinds.count("Gemm"), kinds.count("QuantizeLinear")) == (4, 0, 4)


def test_a_folder_with_class_names_and_an_unreadable_image(images, tmp_path):
    """The bundle has the run's class names; the run says what it could not read and what it was judged on."""
    root = tmp_path / "named"
    shutil.copytree(images, root)
    (root / "0" / "bad.jpg").write_text("no image")
    names = [f"name of class {number}" for number in range(10)]
    (root / "classes.txt").write_text("".join(f"{number} {name}\n" for number, name in enumerate(names)))
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    words = (*image_network(tmp_path), "--data", root, "--target", "tensorrt")
    output = invoke("calibrate", *words, "--output", run)
    assert "1 unreadable images, first 0/bad.jpg" in output
    assert "evaluated on the calibration images themselves" in output
    invoke("build-engine", "--int8", "--bundle", bundle, run)
    assert (bundle / "labels.txt").read_text().splitlines() == names
    assert json.loads((run / "manifest.json").read_text())["classes"] == names


def test_fuse_writes_an_equal_smaller_network(weights, tmp_path):
    dst = tmp_path / "fused.safetensors"
    output = invoke("fuse", "--arch", "s0", "--image-size", 32, weights, dst)
    assert "fused, 1,063,754 parameters" in output
    assert sum(p.numel() for p in FusedModel.load(dst).parameters()) < 1.1e6
    again = tmp_path / "again.safetensors"
    assert "was fused already" in invoke("fuse", "--arch", "s0", dst, again)
    first, second = (FusedModel.load(path).state_dict() for path in (dst, again))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_fuse_overwrites_nothing(weights, tmp_path):
    dst = tmp_path / "precious.safetensors"
    dst.write_text("precious")
    assert "exists; choose another name" in refused("fuse", "--arch", "s0", weights, dst)
    assert dst.read_text() == "precious"


def test_other_variants_need_weights():
    assert "no weights for s2: pass --weights" in refused("calibrate", "--arch", "s2")
    assert "pass --weights" in refused("calibrate", "--arch", "s0", "--data", ".")


def test_weights_need_images(weights):
    assert "pass --data FOLDER" in refused("calibrate", "--arch", "s0", "--weights", weights)


def test_errors_name_file_and_remedy(images, weights, tmp_path):
    _, arch, _, narrow = image_network(tmp_path)

    def calibrate(**changes):
        options = {"arch": arch, "weights": narrow, "data": images, "output": tmp_path / "run"}
        options |= changes
        return refused("calibrate", *(word for k, v in options.items() for word in (f"--{k}", v)))

    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    assert "none.pth; check --weights" in calibrate(weights=tmp_path / "none.pth")
    assert "pass --arch s0" in calibrate(arch="s3", weights=weights)
    assert "no images under" in calibrate(data=tmp_path / "empty")
    assert "12 images, fewer than the 13 asked for" in calibrate(images=13)
    assert "is not empty" in calibrate(output=tmp_path / "full", weights=tmp_path / "none.pth")  # said first
    assert "cannot write to" in calibrate(output=tmp_path / "full" / "precious" / "run")
    assert "cannot write to" in calibrate(output="/proc/run")
    assert not (tmp_path / "run").exists()


def test_commands_on_a_run_need_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "mobileone-q calibrate --arch s0" in refused("build-engine", "--int8")
    assert "is not a finished run" in refused("report", tmp_path)
    assert "there is nothing at runs/s1; `mobileone-q runs list` lists" in refused("report", "runs/s1")


def test_profile_needs_engines(bundled, tmp_path):
    assert "build it with" in refused("profile", bundled[0], "--backend", "tensorrt")


@pytest.mark.parametrize(
    "words", [["calibrate"], ["calibrate", "--arch", "s9"], ["nonsense"], ["fuse", "--arch", "s0"]]
)
def test_usage_errors_exit_2(words):
    invoke(*words, code=2)


def test_help_answers_without_heavy_imports():
    code = (
        "import sys; from click.testing import CliRunner; import cli;"
        "assert CliRunner().invoke(cli.main, ['--help']).exit_code == 0;"
        "print(sorted({'torch', 'numpy', 'onnx', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_looking_at_a_run_does_not_wait_for_torch(bundled):
    """It takes two seconds to import, and `verify`, `runs list`, `compare` and `report` need none of it."""
    code = (
        "import sys; from click.testing import CliRunner; import cli;"
        "calls = ['verify'], ['compare'], ['report'], ['runs', 'list'];"
        "[CliRunner().invoke(cli.main, [*words, sys.argv[1]], catch_exceptions=False) for words in calls];"
        "print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    words = [sys.executable, "-c", code, bundled[0]]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_plain_lines_off_a_terminal(bundled, capfd):
    invoke("profile", bundled[0], "--runs", 1)
    assert "\x1b[" not in capfd.readouterr().err
