"""Every form of graph that is exported, in tools of others: each accepts it, and its results are ours.

Each tool runs in a process of its own, since OpenVINO has crashed one that ran other tests.
"""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

from calibrate.recipe import Recipe
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.export.graph import export_onnx
from mobileone_q.input_form import FLOAT_INPUT, InputForm
from tests.helpers.calibrated import calibrated_network, fused_network
from tests.helpers.networks import narrow, random_images

pytestmark = [pytest.mark.slow, pytest.mark.long]
ARCH = narrow("s4")  # with squeeze-and-excite
KEPT = ("stem", "stage3.0.pw")
FACTS = {"classes": json.dumps(["cat", "dog"]), "weights_sha256": "0" * 64}
# Each script reads a list of [graph, input, output] and writes the tool's results.
RUN = {
    "onnxslim": """
        import onnx, onnxruntime, onnxslim
        slim = onnxslim.slim(onnx.load(graph))
        before, after = ([n.op_type for n in m.graph.node] for m in (onnx.load(graph), slim))
        kinds = ("QuantizeLinear", "DequantizeLinear")
        assert [before.count(k) for k in kinds] == [after.count(k) for k in kinds], "quantizers are gone"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(slim.SerializeToString(), options)
        (logits,) = session.run(None, {"input": x})
    """,
    "openvino": """
        import openvino
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        logits = compiled(x)[0]
    """,
    "polygraphy": """
        from unittest import mock
        from polygraphy.comparator import RunResults
        from polygraphy.json import save_json
        from polygraphy.tools import main
        save_json([{"input": x}], "in.json")
        words = ["run", graph, "--onnxrt", "--load-inputs", "in.json", "--save-outputs", "out.json"]
        for command in (words, ["inspect", "model", graph, "--show", "layers", "attrs", "weights"]):
            with mock.patch("sys.argv", ["polygraphy", *command]):
                try:
                    code = main()
                except SystemExit as ended:
                    code = ended.code
                assert not code, code
        ((_, (results,)),) = RunResults.load("out.json").items()
        logits = results["logits"]
    """,
}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """The path of each graph, by its form, with the logits of ONNX Runtime that optimizes nothing."""
    folder = tmp_path_factory.mktemp("graphs")
    models = {
        "fp32": (fused_network(ARCH), "fp32"),
        "fp16": (fused_network(ARCH), "fp16"),
        "int8-fp16": (calibrated_network(ARCH, Recipe(target="tensorrt", keep_float=KEPT)), "fp16"),
    }
    for target in ("tensorrt", "onnxruntime", "dla", "dla-qdq"):
        models[target] = (calibrated_network(ARCH, Recipe(target=target)), "fp32")
    images, pixels = random_images(ARCH, 2).numpy(), np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    found = {}
    for name, (model, floats) in models.items():
        for form in (FLOAT_INPUT, InputForm("uint8", "bgr"))[: 2 if name in ("fp32", "tensorrt") else 1]:
            path = folder / f"{name}{form.suffix}.onnx"
            transform = Preprocessing.for_size(32).to_dict()
            export_onnx(
                model, path, float_precision=floats, facts=FACTS, input_form=form, preprocessing=transform
            )
            x = pixels.astype(np.uint8) if form.is_pixels else images
            np.save(path.with_suffix(".npy"), x)
            (logits,) = onnxruntime.InferenceSession(path, options).run(None, {"input": x})
            found[path.stem] = (name, path, logits)
    return found


@pytest.mark.parametrize("tool", RUN)
def test_a_tool_accepts_every_graph_and_computes_the_same(graphs, tmp_path, tool):
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed")
    body = "\n".join(line[4:] for line in RUN[tool].splitlines())
    outputs = {name: tmp_path / f"{name}.npy" for name in graphs}
    places = [(str(path), str(outputs[name])) for name, (_, path, _) in graphs.items()]
    script = (
        f"import numpy as np\nfor graph, output in {places!r}:\n"
        f"    x = np.load(graph.replace('.onnx', '.npy')){body}\n    np.save(output, logits)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for name, (kind, _, expected) in graphs.items():
        # Integer kernels and float16 round in another order, and on DLA the output has codes too.
        near = {"fp32": 1e-5, "fp16": 2e-3, "int8-fp16": 1e-2}.get(kind, 2e-2)
        found = np.load(outputs[name])
        assert np.abs(found - expected).max() <= near * np.abs(expected).max(), name
        if tool == "onnxslim":
            assert np.array_equal(found, expected), name
