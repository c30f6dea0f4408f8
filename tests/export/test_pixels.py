"""Graphs that take pixels: the same codes as outside, on every pixel value and at the border."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from calibrate.recipe import Recipe
from mobileone_q.architecture.spec import Architecture, BlockSpec
from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.errors import ExportError
from mobileone_q.export.graph import to_onnx
from mobileone_q.export.pixels import gain_and_offset
from mobileone_q.input_form import InputForm, settled_form
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel
from tests.helpers.calibrated import calibrated_network, fused_network
from tests.helpers.graphs import run_on
from tests.helpers.networks import small

TRANSFORM = Preprocessing(resize=36, crop=32)
RGB, BGR = InputForm("uint8"), InputForm("uint8", "bgr")
CODES = "stem/input_quantize:0"


@pytest.fixture(scope="module")
def pixels():
    """uint8 (3, 32, 32, 3): each channel has every value inside, and values of its own along each border."""
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    every = np.arange(256, dtype=np.uint8)
    for channel in range(3):
        images[channel, 2:10, :, channel] = np.roll(every, 7 * channel).reshape(8, 32)
    return images


def codes_and_logits(model, form, x, **options):
    proto = to_onnx(model, preprocessing=TRANSFORM.to_dict(), input_form=form)
    proto.graph.output.append(helper.make_tensor_value_info(CODES, TensorProto.INT8, None))
    logits, codes = run_on(proto, x, CODES, **options)
    return codes, logits


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("form", [RGB, BGR], ids=str)
def test_codes_are_those_of_preprocessing_outside(target, form, pixels):
    model = calibrated_network(small(), Recipe.bare(target=target))
    outside = TRANSFORM.normalize(pixels.transpose(0, 3, 1, 2))
    given = pixels if form == RGB else np.ascontiguousarray(pixels[..., ::-1])
    expected, logits = codes_and_logits(model, InputForm(), outside, optimize=False)
    codes, same_logits = codes_and_logits(model, form, given, optimize=False)
    if form == BGR:
        codes = codes[:, ::-1]
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(same_logits, logits)  # so the border is padded alike too
    optimized, _ = codes_and_logits(model, form, given)
    np.testing.assert_array_equal(optimized[:, ::-1] if form == BGR else optimized, expected)


def test_the_fp32_graph_gives_the_same_logits(pixels):
    model = fused_network(small())
    outside = TRANSFORM.normalize(pixels.transpose(0, 3, 1, 2))
    (expected,) = run_on(to_onnx(model, preprocessing=TRANSFORM.to_dict()), outside)
    for form, given in ((RGB, pixels), (BGR, pixels[..., ::-1])):
        proto = to_onnx(model, preprocessing=TRANSFORM.to_dict(), input_form=form)
        (logits,) = run_on(proto, np.ascontiguousarray(given))
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_offsets_move_where_a_pixel_lies_between_two_codes():
    """Of 300 scales some put a pixel so near the middle of two codes that rounding decides."""
    model = QuantizedModel(small(), "tensorrt")
    stem, moved = model.block("stem"), 0
    mean, std = np.float32(TRANSFORM.mean), np.float32(TRANSFORM.std)
    p = np.arange(256, dtype=np.float32)[:, None]
    outside = (p / np.float32(255) - mean) / std
    for scale in np.linspace(0.015, 0.025, 300, dtype=np.float32):
        stem.input_scale.fill_(float(scale))
        gain, offset = gain_and_offset(TRANSFORM.mean, TRANSFORM.std, stem)
        np.testing.assert_array_equal(np.rint((p * gain + offset) / scale), np.rint(outside / scale))
        fused = (p.astype(np.float64) * gain.astype(np.float64) + offset).astype(np.float32)
        np.testing.assert_array_equal(np.rint(fused / scale), np.rint(outside / scale))
        moved += bool((offset != (-np.float64(TRANSFORM.mean) / TRANSFORM.std).astype(np.float32)).any())
    assert moved > 0


@pytest.mark.parametrize("size", [(36, 64), (90, 160), (108, 81), (30, 40)])
def test_camera_frames_are_scaled_and_cropped_as_images_are(size):
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float64)
    waves = [np.sin(rows / size[0] * 5 + k) + np.cos(columns / size[1] * 4 - k) for k in range(3)]
    frame = np.uint8(np.stack(waves, -1) * 60 + 127)
    form = InputForm("uint8", "rgb", size)
    proto = to_onnx(fused_network(small()), preprocessing=TRANSFORM.to_dict(), input_form=form)
    proto.graph.output.append(helper.make_tensor_value_info("pixels/shift:0", TensorProto.FLOAT, None))
    _, scaled = run_on(proto, np.stack([frame, frame]), "pixels/shift:0")
    difference = TRANSFORM.read_back(scaled[1]) - TRANSFORM.to_pixels(Image.fromarray(frame))
    assert scaled.shape == (2, 3, 32, 32)
    assert np.abs(difference).max() < 2.5  # Pillow rounds twice; a shift by one pixel makes 10
    assert np.abs(difference).mean() < 0.6


def test_networks_that_cannot_take_pixels():
    model, transform = FusedModel(small()), TRANSFORM.to_dict()
    with pytest.raises(ExportError, match="takes no RGB images"):
        to_onnx(model, input_form=RGB)
    for target in ("dla", "dla-qdq"):
        with pytest.raises(ExportError, match="--input float"):
            to_onnx(QuantizedModel(small(), target), preprocessing=transform, input_form=RGB)
    stem, head = BlockSpec("stem", 3, 6, groups=3), BlockSpec("head", 6, 5, activation="none", pool=True)
    grouped = Architecture("grouped", (stem, head), (32, 32))
    to_onnx(FusedModel(grouped), preprocessing=transform, input_form=RGB)
    with pytest.raises(ExportError, match="rgb"):
        to_onnx(FusedModel(grouped), preprocessing=transform, input_form=BGR)


def test_forms_of_input_that_do_not_go_together():
    for words in ({"channel_order": "bgr"}, {"channel_order": None, "camera_size": (480, 640)}):
        with pytest.raises(ExportError, match="--input uint8"):
            settled_form("float", **words)
    frames = InputForm("uint8", "bgr", (480, 640))
    for form in (InputForm(), RGB, BGR, frames):
        assert InputForm.from_dict(form.to_dict()) == form
    for wrong in ({"dtype": "uint8"}, {"dtype": "int4"}, frames.to_dict() | {"camera_size": [1]}, [], {}):
        with pytest.raises(ValueError, match="unknown form"):
            InputForm.from_dict(wrong)
