"""`calibrate --grids`: two INT8 graphs in one run, and the script that chooses between them on a device."""

import json
import os
import shutil
import stat
import subprocess

import onnx
import pytest

from mobileone_q.models.grids import INT8, UINT8, input_grids
from mobileone_q.models.quantized import QuantizedModel
from tests.helpers.cli import invoke, refused
from tests.helpers.networks import narrow, small
from tests.helpers.sample import calibrated_sample

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
# Builds nothing: writes the files that it is told to, and says the time that its environment gives.
STAND_IN = """#!/bin/sh
for WORD in "$@"; do
  case $WORD in --saveEngine=*) PLAN=${WORD#*=} ;; esac
done
GRIDS=${PLAN%.plan}
eval "MS=\\$MS_$GRIDS"
if [ "$MS" = fails ]; then echo "[E] Could not find any implementation"; exit 1; fi
echo "$@" > "$PLAN"
echo "[]" > "$PLAN.profile.json"; echo "{}" > "$PLAN.layers.json"
echo "[I] GPU Compute Time: min = 0.1 ms, max = 9 ms, mean = 1 ms, median = $MS ms, percentile(99%) = 2 ms"
"""


@pytest.fixture(scope="module")
def both(once):
    """A run of the sample with two graphs; read it only."""
    return calibrated_sample(once, "tensorrt", "--grids", "both") / "run"


def relus(path):
    return sum(node.op_type == "Relu" for node in onnx.load(path).graph.node)


def test_plain_grids_leave_every_relu_in_place():
    arch = small()
    plain, saturating = (input_grids(arch, "tensorrt", form) for form in ("plain", "saturating"))
    assert {name for name, grid in plain.items() if grid == UINT8} == {"head"}  # an Add, not a ReLU
    assert sum(grid == UINT8 for grid in saturating.values()) == 22
    assert plain["stage1.0.pw"] == INT8


def test_a_run_keeps_two_graphs_with_two_costs(both, sample_run):
    report = json.loads((both / "report.json").read_text())
    manifest = json.loads((both / "manifest.json").read_text())
    assert relus(both / "int8-plain.onnx") == relus(both / "fp32.onnx") == 43
    assert relus(both / "int8.onnx") == 22
    costs = report["accuracy"]["kl"], report["plain_grids"]["kl"]
    assert 0 < costs[0] < costs[1] < 0.1
    assert report["plain_grids"]["images"] == report["accuracy"]["images"]
    assert manifest["max_kl"] == 0.02
    assert {"int8-plain.onnx", "quantized-plain.safetensors"} <= manifest["artefacts"].keys()
    assert (both / "int8.onnx").read_bytes() == (sample_run() / "int8.onnx").read_bytes()
    text = invoke("report", both)
    assert f"KL {costs[1]:.4f} nats; the second INT8 graph of this run" in text
    assert "second INT8 graph" in (both / "report.html").read_text(encoding="utf-8")
    assert "int8-plain.onnx" in invoke("verify", both)
    assert QuantizedModel.load(both / "quantized-plain.safetensors").activation_grids == "plain"


def test_exact_integers_of_both_graphs_each_beside_its_own_simulation(both, tmp_path):
    run = shutil.copytree(both, tmp_path / "run")
    invoke("evaluate", run, "--exact", "--images", 20)
    rows = {row["name"]: row for row in json.loads((run / "report.json").read_text())["parity"]["engines"]}
    saturating, plain = rows["int8 exact fp32"], rows["int8 plain exact fp32"]
    assert plain["reference"] == "int8 plain simulation"
    assert plain["agreement"] >= 0.95
    assert plain["kl"] == pytest.approx(rows["int8 plain simulation"]["kl"], rel=0.01)
    assert plain["kl"] > 1.05 * saturating["kl"]  # so it is not the first graph once more


@pytest.fixture(scope="module")
def written(both, tmp_path_factory):
    """The bundle as it is written; only read it."""
    folder = tmp_path_factory.mktemp("written") / "bundle"
    invoke("build-engine", both, "--int8", "--bundle", folder)
    return folder


@pytest.fixture
def bundle(written, tmp_path):
    """The bundle, with the stand-in in the place of trtexec."""
    folder = shutil.copytree(written, tmp_path / "bundle")
    stand_in = tmp_path / "trtexec"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    script = folder / "build.sh"
    script.write_text(script.read_text().replace(TRTEXEC, str(stand_in)))
    return folder


def build(bundle, saturating, plain, limit=None, version="8.6.1"):
    if limit is not None:
        script = bundle / "build.sh"
        script.write_text(script.read_text().replace("LIMIT=0.020000", f"LIMIT={limit}"))
    environment = os.environ | {
        "TENSORRT_VERSION": version, "MS_saturating": str(saturating), "MS_plain": str(plain)
    }  # fmt: skip
    words = ["sh", bundle / "build.sh"]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("saturating", "plain", "limit", "chosen", "said"),
    [
        (1.0, 0.5, "1.0", "plain", "plain grids: 0.5 ms, KL 0."),
        (0.5, 1.0, "1.0", "saturating", "saturating grids: 0.5 ms, KL 0."),
        (1.0, 0.5, "0.000001", "saturating", "beyond the limit of 0.000001"),
        ("fails", 0.5, "1.0", "plain", "trtexec cannot build this graph; see saturating.log"),
        (0.5, "fails", "1.0", "saturating", "trtexec cannot build this graph; see plain.log"),
    ],
)
def test_the_faster_graph_within_the_limit_is_kept(bundle, saturating, plain, limit, chosen, said):
    done = build(bundle, saturating, plain, limit)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout + done.stderr
    assert f"model.plan: the graph on {chosen} grids" in done.stdout
    assert (bundle / "model.plan.grids").read_text() == f"{chosen}\n"
    graph = {"saturating": "int8.onnx", "plain": "int8-plain.onnx"}[chosen]
    assert f"--onnx={graph} " in (bundle / "model.plan").read_text()
    assert (bundle / "model.plan.profile.json").is_file()


def test_only_one_within_the_limit_wins_though_it_is_slower(bundle, both):
    report = json.loads((both / "report.json").read_text())
    between = (report["accuracy"]["kl"] + report["plain_grids"]["kl"]) / 2
    done = build(bundle, 1.0, 0.5, f"{between:.6f}", version="10.3.0")
    assert "the graph on saturating grids" in done.stdout
    assert "plain grids: 0.5 ms" in done.stdout


def test_where_nothing_can_be_built_the_script_fails(bundle):
    done = build(bundle, "fails", "fails")
    assert done.returncode == 1
    assert "no engine was built" in done.stderr


def test_a_run_with_one_graph_has_no_choice(sample_run, tmp_path):
    invoke("build-engine", sample_run(), "--int8", "--bundle", tmp_path / "bundle")
    assert "consider" not in (tmp_path / "bundle" / "build.sh").read_text()


def test_what_cannot_be_asked_for(tmp_path):
    words = ("calibrate", "--arch", "s0", "--images", 8, "--output", tmp_path / "run")
    for grids in ("plain", "both"):
        for target in ("onnxruntime", "dla"):
            text = refused(*words, "--grids", grids, "--target", target)
            assert f"plain grids for target {target} (they are a choice of target tensorrt)" in text
    assert not (tmp_path / "run").exists()


def test_the_choice_survives_its_file(tmp_path):
    model = QuantizedModel(narrow("s4"), "tensorrt", (), "plain")
    model.save(tmp_path / "a.safetensors")
    assert QuantizedModel.load(tmp_path / "a.safetensors").grids == model.grids
