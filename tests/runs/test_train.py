"""`mobileone-q train`, from a recipe to weights that `calibrate` and `qat` take."""

import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from mobileone_q.files import read_safetensors
from mobileone_q.runs.storage.staging import owned
from tests.helpers.cli import invoke, refused
from tests.helpers.tiny import recipe, write_tiny, write_weights
from tests.helpers.training import ROOT, environment, losses, same


@pytest.fixture
def folder(tmp_path):
    return write_tiny(tmp_path)


KILLED = """
import os, signal
from mobileone_q.training.metric_log import MetricLog
write = MetricLog.write
def write_and_die(log, step, **values):
    write(log, step, **values)
    if step >= 23:
        os.kill(os.getpid(), signal.SIGKILL)
MetricLog.write = write_and_die
from cli import main
main()
"""


@pytest.mark.long
def test_kill_9_costs_at_most_one_interval(folder, tmp_path):
    """A process that is killed as soon as it has written what it measured at step 23."""
    options = ["train", recipe(folder), "--epochs", "8", "--checkpoint-every", "5", "--device", "cpu"]
    options += ["--log-every", "1"]
    invoke(*options, "--output", tmp_path / "whole")
    words = [str(word) for word in [sys.executable, "-c", KILLED, *options, "--output", tmp_path / "killed"]]
    killed = subprocess.run(words, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL, check=False)
    assert killed.returncode == -signal.SIGKILL
    log = tmp_path / "killed" / "training" / "metrics.jsonl"
    assert max(losses(log.parent)) == 23
    checkpoint = torch.load(log.with_name("checkpoint.pt"), weights_only=True)
    assert 23 - 5 <= checkpoint["progress"]["step"] <= 23
    invoke(*options, "--output", tmp_path / "killed", "--resume")
    files = (tmp_path / name / "weights.safetensors" for name in ("whole", "killed"))
    whole, resumed = (read_safetensors(path)[0] for path in files)
    assert same(whole, resumed)
    assert losses(tmp_path / "whole" / "training") == losses(log.parent)


LEFT = ("metrics.jsonl", "tensorboard/events.out.tfevents.1.host", ".checkpoint.pt.partial-99999999-x.pt")


def test_what_was_killed_before_its_first_checkpoint_is_begun_anew(folder, tmp_path):
    words = ("train", recipe(folder), "--epochs", 1, "--device", "cpu", "--output", tmp_path / "out")
    for name in LEFT:
        path = tmp_path / "out" / "training" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"step": 7}\n')
    mine = tmp_path / "out" / "training" / "cat.jpg"
    mine.write_text("mine")
    assert "out is not empty" in refused(*words)
    assert mine.is_file()
    assert all((mine.parent / name).is_file() for name in LEFT)
    mine.unlink()
    invoke(*words)
    assert '"step": 7' not in (tmp_path / "out" / "training" / "metrics.jsonl").read_text()
    assert "out is not empty" in refused(*words)


def test_two_trainings_do_not_share_a_folder(folder, tmp_path):
    (tmp_path / "out").mkdir()
    with owned(tmp_path / "out"):
        words = ("train", recipe(folder), "--epochs", 1, "--device", "cpu", "--output", tmp_path / "out")
        assert "another process is at work in" in refused(*words)
        assert list((tmp_path / "out").iterdir()) == []


def test_trained_weights_go_on_to_calibrate(folder, tmp_path):
    """A 1-D network, from a recipe to INT8."""
    output = invoke("train", recipe(tmp_path), "--epochs", 8, "--output", tmp_path / "out", "--device", "cpu")
    assert "FP32 top-1" in output
    weights = tmp_path / "out" / "weights.safetensors"
    assert re.search(rf"next: mobileone-q calibrate --arch \S*tiny.yaml --weights {weights} --data", output)
    data = ["--data", tmp_path / "signals.npz", "--eval-data", tmp_path / "test.npz"]
    invoke(
        "calibrate", "--arch", folder / "tiny.yaml", "--weights", weights, *data, "--output", tmp_path / "run"
    )
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["accuracy"]["fp32"]["top1"] > 0.9
    made = tmp_path / "tuned"
    words = ["--epochs", 2, "--batch", 16, "--shift", 0.2, "--output", made, "--device", "cpu"]
    invoke("qat", tmp_path / "run", "--branches", "live", *words)
    tuned = json.loads((made / "report.json").read_text())
    assert tuned["accuracy"]["int8"]["top1"] > 0.9


@pytest.mark.parametrize("form", ["branches", "fused"])
def test_weights_get_a_new_head_for_other_classes(folder, tmp_path, form):
    """All kernels but the head's stay with `--backbone-lr 0`, and train without it."""
    weights = write_weights(folder)
    if form == "fused":
        invoke("fuse", weights, weights.with_name("fused.safetensors"), "--arch", folder / "tiny.yaml")
        weights = weights.with_name("fused.safetensors")
    before, _ = read_safetensors(weights)
    more = folder / "more.npz"
    np.savez(more, x=np.load(folder / "signals.npz")["x"], y=np.arange(96) % 5)
    words = ["train", recipe(folder), "--weights", weights, "--data", more, "--eval-data", more]
    words += ["--epochs", 1, "--weight-decay", 0, "--keep", "last", "--device", "cpu"]
    assert "has 3 classes, and --eval-data has 5; pass --new-head" in refused(*words)
    for rate, is_kept in ((0, True), (0.5, False)):
        invoke(*words, "--new-head", "--backbone-lr", rate, "--output", tmp_path / str(rate))
        after, _ = read_safetensors(tmp_path / str(rate) / "weights.safetensors")
        assert after.keys() == before.keys()
        assert len(after["head.weight"]) == len(after["head.bias"]) == 5
        kernels = [name for name, value in before.items() if value.ndim > 2]
        assert [torch.equal(before[name], after[name]) for name in kernels] == [is_kept] * len(kernels)


def test_a_new_head_needs_weights(folder):
    assert "--new-head is for the network of --weights" in refused("train", recipe(folder), "--new-head")


def test_the_best_weights_are_kept_unless_the_last_are_wanted(folder, tmp_path):
    """A learning rate that ruins the network: the best weights are those of an early evaluation."""
    words = ["train", recipe(folder), "--epochs", 6, "--final-lr", 0.1, "--device", "cpu", "--ema", 0]
    for keep in ("best", "last"):
        said = invoke(*words, "--lr", 30, "--keep", keep, "--output", tmp_path / keep)
        log = (tmp_path / keep / "training" / "metrics.jsonl").read_text().splitlines()
        top1 = [value for line in log if (value := json.loads(line).get("held_out/top1")) is not None]
        wanted = max(top1) if keep == "best" else top1[-1]
        assert f"FP32 top-1      {100 * wanted:.2f} %" in said
        assert max(top1) > top1[-1]
        assert said.count("the best so far") < said.count("\nepoch ") == 6
    both = [tmp_path / "best" / "last.safetensors", tmp_path / "last" / "weights.safetensors"]
    assert same(*(read_safetensors(path)[0] for path in both))
    assert not (tmp_path / "last" / "last.safetensors").exists()


def test_a_refused_run_leaves_no_folder(folder):
    words = ["train", recipe(folder), "--batch", 200, "--output", folder / "none", "--device", "cpu"]
    assert "fewer inputs than one batch" in refused(*words)
    assert not (folder / "none").exists()


class Convolutions(TorchDispatchMode):
    """Records what each convolution was given: (input channels, kernel, stride, groups)."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            x, weight, _, stride, *_, groups = args
            self.seen.add((x.shape[1], tuple(weight.shape[2:]), tuple(stride), groups))
        return function(*args, **kwargs or {})


def test_a_step_of_s0_at_224_pixels(tmp_path):
    """oneDNN once wrote beyond a buffer here, and the process mostly died of a segmentation fault.

    What asks for it, a dense 1×1 kernel with a stride on few channels, is not called any more.
    """
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (240, 240), (200, 30, 90)).save(tmp_path / "images" / name / "0.png")
    path = tmp_path / "recipe.yaml"
    path.write_text(f"arch: s0\ndata: {tmp_path / 'images'}\neval-data: {tmp_path / 'images'}\n")
    words = ["--batch", 2, "--epochs", 1, "--device", "cpu", "--output", tmp_path / "out"]
    with Convolutions() as convolutions:
        assert "after 1 steps" in invoke("train", path, *words)
    assert (3, (3, 3), (2, 2), 1) in convolutions.seen
    assert (3, (1, 1), (1, 1), 1) in convolutions.seen
    assert not [each for each in convolutions.seen if each[1:] == ((1, 1), (2, 2), 1)]
