"""A certificate measures every block, and a wrong fusion would show in it."""

from mobileone_q.models import fuse as fuse_module
from mobileone_q.models.certificate import certify
from tests.helpers.networks import random_images, random_model, small


def test_certificate_holds_every_block_and_both_inputs():
    model = random_model(small())
    certificate = certify(model, random_images(model.arch).numpy())
    assert certificate.worst < 1e-12
    assert certificate.real is not None
    assert list(certificate.random.blocks) == [block.name for block in model.arch.blocks]
    assert 1e-9 < certificate.random.float32_end_to_end < 1e-5  # what rounding to float32 costs


def test_certificate_would_show_a_wrong_fusion(monkeypatch):
    model = random_model(small())
    right = fuse_module.fold_batch_norm

    def without_mean(kernel, bn):
        folded, bias = right(kernel, bn)
        return folded, bias + bn.running_mean * 1e-3

    monkeypatch.setattr(fuse_module, "fold_batch_norm", without_mean)
    certificate = certify(model)
    assert certificate.worst > 1e-6
    assert certificate.random.blocks["head"] < 1e-12  # the classifier has no batch norm to get wrong
