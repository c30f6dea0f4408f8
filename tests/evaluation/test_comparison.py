"""Several quantized models against one FP32 model."""

import pytest

from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.evaluation.comparison import Comparison, TorchModel
from mobileone_q.evaluation.metrics import kl_divergence
from mobileone_q.models.fuse import fuse_branches
from tests.helpers.networks import random_images, random_model, small


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime", "dla"])
def test_int8_is_measured_on_its_own_grids(target, tmp_path):
    """DLA's graph has no grids: run in ONNX Runtime, it would compute in floating point."""
    fused = fuse_branches(random_model(small()))
    images = random_images(small(), 32).numpy()
    quantized = calibrate(fused, [(images[:8], None)], Recipe(target=target))
    fp32, simulated = (TorchModel(model).run(images) for model in (fused, quantized))
    accuracy = Comparison(fused, [(images, fp32.argmax(1))], tmp_path).with_int8(quantized)
    assert accuracy.fp32.top1 == 1
    assert accuracy.kl == pytest.approx(kl_divergence(fp32, simulated), rel=0.02 if target == "dla" else 0.5)
    assert (tmp_path / "int8.onnx").exists() == (target != "dla")
