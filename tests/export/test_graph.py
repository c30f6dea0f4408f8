"""The ONNX graphs: their contract, their codes beside the simulation's, and their metadata."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.errors import ExportError, FileError
from mobileone_q.export.graph import export_onnx, to_onnx
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.grids import INT8, UINT8, input_grids
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.names import TARGETS
from tests.helpers.calibrated import calibrated_network, fused_network
from tests.helpers.graphs import power_of_two, run, with_codes
from tests.helpers.networks import narrow, random_images, random_model, relative_error, relu6_network, small


@pytest.fixture(scope="module", params=[small("s0"), narrow("s4")], ids=lambda arch: arch.name)
def fused(request):
    return fused_network(request.param)


def metadata(proto):
    return {entry.key: entry.value for entry in proto.metadata_props}


def quantized_for(fused, target):
    return calibrated_network(fused.arch, Recipe(target=target))


def test_fp32_graph_computes_the_fused_model(fused):
    x = random_images(fused.arch, 3)
    assert relative_error(fused(x), torch.from_numpy(run(to_onnx(fused), x)[0])) < 1e-5


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_contract_of_the_quantized_graph(fused, target):
    quantized = quantized_for(fused, target)
    proto = to_onnx(quantized)
    producer = {node.output[0]: node for node in proto.graph.node}
    constants = {i.name: i for i in proto.graph.initializer}
    compute = {n.name: n for n in proto.graph.node if n.op_type in ("Conv", "Gemm") and "/se/" not in n.name}
    assert list(compute) == [spec.name for spec in fused.arch.blocks]
    for name, node in compute.items():
        if quantized.block(name).is_float:  # S4's depthwise blocks ahead of SE, for TensorRT
            assert target == "tensorrt"
            assert name.endswith(".dw")
            assert constants[node.input[1]].data_type == TensorProto.FLOAT
            continue
        x, weight = producer[node.input[0]], producer[node.input[1]]
        assert x.op_type == weight.op_type == "DequantizeLinear", name
        assert producer[x.input[0]].op_type == "QuantizeLinear"
        assert constants[weight.input[0]].data_type == TensorProto.INT8
        codes = numpy_helper.to_array(constants[weight.input[0]])
        assert -127 <= codes.min() <= codes.max() <= 127
        assert len(numpy_helper.to_array(constants[weight.input[1]])) == len(codes)
        if len(node.input) > 2:
            assert constants[node.input[2]].data_type == TensorProto.FLOAT
    zero_points = {
        i.name: (i.data_type, numpy_helper.to_array(i))
        for i in constants.values()
        if i.name.endswith("zero_point")
    }
    assert all((value == 0).all() for _, value in zero_points.values())
    if target == "tensorrt":
        assert {kind for kind, _ in zero_points.values()} == {TensorProto.INT8}
    assert proto.opset_import[0].version >= 17
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert (proto.graph.input[0].name, proto.graph.output[0].name) == ("input", "logits")


def test_nothing_but_the_relu_between_a_conv_and_the_next_quantizer(fused):
    quantized = quantized_for(fused, "tensorrt")
    proto = to_onnx(quantized)
    producer = {node.output[0]: node for node in proto.graph.node}
    grids = input_grids(fused.arch, "tensorrt")
    specs = {spec.name: spec for spec in fused.arch.blocks}
    for before, after in zip(fused.arch.blocks, fused.arch.blocks[1:]):
        if before.se_channels or after.pool or quantized.block(after.name).is_float:
            continue
        node = producer[
            next(n for n in proto.graph.node if n.name == f"{after.name}/input_quantize").input[0]
        ]
        saturating = grids[after.name] == UINT8
        assert (node.op_type == "Conv") == saturating
        assert node.name == before.name if saturating else node.name == f"{before.name}/relu"
    saturated = [name for name, grid in grids.items() if grid == UINT8 and not specs[name].pool]
    assert len(saturated) == (21 if fused.arch.name == "s0" else 15)


def test_grids_by_target():
    arch = small()
    tensorrt, ort = input_grids(arch, "tensorrt"), input_grids(arch, "onnxruntime")
    assert tensorrt["stem"] == ort["stem"] == INT8
    assert {tensorrt[s.name] for s in arch.blocks if s.is_depthwise} == {INT8}
    assert {tensorrt[s.name] for s in arch.blocks if s.name.endswith("pw")} == {UINT8}
    assert {grid for name, grid in ort.items() if name != "stem"} == {UINT8}
    assert set(input_grids(arch, "dla").values()) == {INT8}


@pytest.mark.parametrize("exact", [True, False])
def test_saturating_relu_gives_the_uint8_codes_less_128(exact):
    """With the same scales in both forms, TensorRT's int8 codes are the uint8 codes less 128."""
    fused = fuse_branches(random_model(small()))
    quantized = quantized_for(fused, "tensorrt")
    if exact:
        power_of_two(quantized)
    plain = to_onnx(quantized)
    names = with_codes(plain, quantized)
    quantized.target = "uint8 as it is"  # the emitter shifts for TensorRT alone
    unshifted = to_onnx(quantized)
    with_codes(unshifted, quantized)
    x = (random_images(fused.arch, 4) * 16).round() / 16
    int8, uint8 = (run(p, x, *names, optimize=False)[1:] for p in (plain, unshifted))
    for name, a, b in zip(names, int8, uint8):
        shift = 128 if quantized.block(name.split("/")[0]).grid == UINT8 else 0
        difference = a.astype(int) + shift - b.astype(int)
        if exact:
            assert not difference.any(), name
        elif name.startswith(("stem", "stage1")):  # beyond, one tie that falls otherwise spreads
            assert abs(difference).max() <= 1
            assert (difference != 0).mean() < 1e-3, name
    assert {a.dtype for a in int8} == {np.dtype(np.int8)}


@pytest.mark.parametrize("stretch", [0.5, 1.0])
def test_saturating_relu6_gives_the_uint8_codes_less_128(stretch):
    """With grids that end below 6, and above it, where the upper cut must stay in the graph."""
    relu6 = relu6_network()
    images = (random_images(relu6.arch, 8) * 16).round() / 16
    quantized = calibrate(relu6, [(images.numpy(), None)], Recipe(target="tensorrt", range_method="minmax"))
    power_of_two(quantized)  # float32 is then exact, and a tie cannot fall otherwise
    for name, block in quantized.blocks():
        if block.grid == UINT8 and name != "head":
            block.input_scale.mul_(stretch)
            assert (255 * block.input_scale > 6) == (stretch == 1)
    plain = to_onnx(quantized)
    names = with_codes(plain, quantized)
    quantized.target = "uint8 as it is"  # the emitter shifts for TensorRT alone
    unshifted = to_onnx(quantized)
    with_codes(unshifted, quantized)
    assert ("Min" in {node.op_type for node in plain.graph.node}) == (stretch == 1)
    int8, uint8 = (run(p, images, *names, optimize=False)[1:] for p in (plain, unshifted))
    shifted = 0
    for name, a, b in zip(names, int8, uint8):
        block = quantized.block(name.split("/")[0])
        shift = 128 if block.grid == UINT8 else 0
        assert not (a.astype(int) + shift - b.astype(int)).any(), name
        if shift and not block.spec.pool:
            shifted += 1
            assert int(b.max()) == min(255, round(6 / float(block.input_scale))), name
    assert shifted == 3


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("optimize", [True, False])
def test_engine_and_simulation_agree_block_by_block(fused, target, optimize):
    """Given the engine's own codes, the simulated block gives the engine's next codes."""
    quantized = quantized_for(fused, target)
    proto = to_onnx(quantized)
    names = with_codes(proto, quantized)
    codes = run(proto, random_images(fused.arch, 4), *names, optimize=optimize)[1:]
    every = [block for _, block in quantized.blocks()]
    blocks = [block for block in every if not block.is_float]
    wrong = total = 0
    for block, consumer, given, expected in zip(blocks, blocks[1:], codes, codes[1:]):
        shift = 128 if target == "tensorrt" and block.grid == UINT8 else 0
        next_shift = 128 if target == "tensorrt" and consumer.grid == UINT8 else 0
        x = torch.from_numpy(given.astype(np.float32) + shift) * block.input_scale
        y = block.activate(block.linear(x))
        for between in every[every.index(block) + 1 : every.index(consumer)]:
            y = between(y)
        y = consumer.gather(y)
        ours = consumer.grid.quantize(y, consumer.input_scale).numpy()
        difference = np.abs(ours - (expected.reshape(ours.shape).astype(np.float32) + next_shift))
        # ONNX Runtime's integer kernels round the float bias to steps of their int32 sums.
        bias_step = (block.input_scale * block.weight_scale).max() / consumer.input_scale
        assert difference.max() <= (1 + bias_step / 2 if optimize else 1), consumer.spec.name
        wrong += int((difference > 0).sum())
        total += difference.size
    assert wrong / total < (5e-3 if optimize else 1e-4)


def test_metadata_says_what_the_file_is(fused, tmp_path):
    export_onnx(fused, tmp_path / "m.onnx", preprocessing={"crop": 32})
    facts = metadata(onnx.load(tmp_path / "m.onnx"))
    assert facts == {
        "architecture": fused.arch.name,
        "precision": "fp32",
        "input": '{"dtype": "float32", "layout": "NCHW"}',
        "preprocessing": '{"crop": 32}',
    }
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]  # no temporary left behind
    assert metadata(to_onnx(fused, float_precision="fp16"))["precision"] == "fp16"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("floats", ["fp32", "fp16"])
def test_metadata_names_the_target_of_an_int8_graph(target, floats):
    proto = to_onnx(QuantizedModel(small(), target), float_precision=floats)
    facts = {"architecture": "s0", "precision": "int8", "target": target}
    assert metadata(proto).items() >= facts.items()


@pytest.mark.parametrize("target", [None, "tensorrt"])
@pytest.mark.parametrize("name", ["s0", "s4"])
def test_the_float16_graph_computes_the_same(name, target):
    """Weights and maps are float16, the function is the same; input, logits and scales are float32."""
    fused = fused_network(small() if name == "s0" else narrow(name))
    model = quantized_for(fused, target) if target else fused
    x = random_images(fused.arch, 8)
    proto = to_onnx(model, float_precision="fp16")
    single, half = (torch.from_numpy(run(p, x)[0]) for p in (to_onnx(model), proto))
    assert half.dtype == torch.float32
    # An INT8 graph may round a tie otherwise where its floating-point part (SE, last map) is float16.
    assert 0 < relative_error(single, half) < (2e-2 if target else 3e-3) or fused.arch.name == "s0"
    assert relative_error(single, half) < (2e-2 if target else 3e-3)
    kinds = {i.name: i.data_type for i in proto.graph.initializer}
    weights = {kind for name, kind in kinds.items() if name.endswith("/weight") or "/se/" in name}
    assert weights <= {TensorProto.FLOAT16}
    assert all(kinds[name] == TensorProto.FLOAT for name in kinds if name.endswith("_scale"))
    casts = [node.name for node in proto.graph.node if node.op_type == "Cast"]
    # S0: the last map. S4: the first depthwise block ahead of an SE unit; then six maps, from the SE
    # unit of a pointwise block to that of the depthwise one behind it, which computes in float16 too.
    assert len(casts) == (2 * {"s0": 1, "s4": 7}[name] if target else 2)


def test_what_float16_cannot_hold_is_refused():
    fused = fuse_branches(random_model(small()))
    fused.block("stage1.0.dw").bias[0] = 1e6
    with pytest.raises(ExportError, match=r"stage1\.0\.dw/bias reaches 1e\+06, beyond float16"):
        to_onnx(fused, float_precision="fp16")


def test_an_interrupted_write_keeps_the_old_file(fused, tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save", fail)
    with pytest.raises(FileError, match=r"cannot write .*m\.onnx: No space left"):
        export_onnx(fused, path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


MIXED = ("stem", "stage1.0.pw", "stage2.1.dw", "head")


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("floats", ["fp32", "fp16"])
def test_blocks_kept_in_floating_point(fused, target, floats):
    """Kept blocks have no Q/DQ, and real weights in the graph's floating-point type; others stay INT8."""
    quantized = calibrated_network(fused.arch, Recipe(target=target, keep_float=MIXED))
    kept = set(MIXED)
    if target == "tensorrt":  # see tests/export/test_float_output.py
        pairs = zip(fused.arch.blocks, fused.arch.blocks[1:])
        kept |= {dw.name for dw, pw in pairs if dw.is_depthwise and (dw.se_channels or pw.name in MIXED)}
        assert "stage1.0.dw" in kept
    assert set(quantized.keep_float) == kept
    proto = to_onnx(quantized, float_precision=floats)
    types = {c.name: c.data_type for c in proto.graph.initializer}
    nodes = {node.name for node in proto.graph.node}
    floating = onnx.TensorProto.FLOAT if floats == "fp32" else onnx.TensorProto.FLOAT16
    for block in fused.arch.blocks:
        is_kept = block.name in kept
        assert (f"{block.name}/input_quantize" in nodes) != is_kept
        assert types.get(f"{block.name}/weight", onnx.TensorProto.INT8) == (
            floating if is_kept else onnx.TensorProto.INT8
        )
    x = random_images(fused.arch, 4)
    engine = torch.from_numpy(run(proto, x, optimize=False)[0])
    assert relative_error(quantized(x), engine) < 0.02
    assert relative_error(fused(x), quantized(x)) < 0.12


def test_mixed_model_survives_its_file(fused, tmp_path):
    quantized = calibrated_network(fused.arch, Recipe(keep_float=MIXED))
    quantized.save(tmp_path / "mixed.safetensors")
    loaded = QuantizedModel.load(tmp_path / "mixed.safetensors")
    x = random_images(fused.arch, 2)
    assert torch.equal(loaded(x), quantized(x))


@pytest.mark.parametrize("target", TARGETS)
def test_every_value_has_a_shape_and_every_grid_one_step(fused, target):
    """Netron shows the shapes. A grid of the whole tensor has scalars: some tools refuse vectors there."""
    graph = to_onnx(quantized_for(fused, target)).graph
    shown = {value.name: value for value in (*graph.value_info, *graph.output)}
    constants = {constant.name: tuple(constant.dims) for constant in graph.initializer}
    for node in graph.node:
        for output in node.output:
            dims = shown[output].type.tensor_type.shape.dim
            assert dims
            assert all(dim.dim_value or dim.dim_param == "batch" for dim in dims), output
        if node.op_type == "QuantizeLinear":
            assert [constants[name] for name in node.input[1:]] == [(), ()]
