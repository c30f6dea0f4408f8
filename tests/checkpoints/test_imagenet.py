import hashlib

import pytest
import torch

from mobileone_q.checkpoints import download, imagenet
from mobileone_q.checkpoints.imagenet import names_of
from mobileone_q.checkpoints.load import Checkpoint, read_checkpoint
from mobileone_q.data.imagenet import imagenet_names


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """Random weights with 1,000 classes, and an empty cache."""
    monkeypatch.setenv("MOBILEONE_Q_CACHE", str(tmp_path / "cache"))
    (tmp_path / "weights.pth").write_bytes(b"weights")
    return Checkpoint(tmp_path / "weights.pth", "apple", {"head.weight": torch.ones(1000, 2)})


def test_a_thousand_classes_are_no_reason(checkpoint):
    assert checkpoint.num_classes == 1000
    assert names_of(checkpoint) is None


def test_a_downloaded_file_is_known_wherever_it_was_copied(checkpoint, tmp_path):
    digest = hashlib.sha256(checkpoint.path.read_bytes()).hexdigest()
    record = tmp_path / "cache" / "apple-mobileone_s2_unfused.pth.tar.sha256"
    record.parent.mkdir()
    record.write_text("0" * 64)
    assert names_of(checkpoint) is None
    record.write_text(f"{digest}\n")
    assert names_of(checkpoint) == imagenet_names()
    record.rename(record.with_name("strange.pth.sha256"))
    assert names_of(checkpoint) is None


def test_a_file_whose_publisher_states_its_hash_is_known(checkpoint, monkeypatch):
    digest = hashlib.sha256(checkpoint.path.read_bytes()).hexdigest()
    monkeypatch.setitem(download.MMPRETRAIN_HASHES, "s3", digest[:8])
    assert names_of(checkpoint) == imagenet_names()


def test_a_known_classifier_is_enough(checkpoint, monkeypatch):
    weight = checkpoint.state["head.weight"].numpy().tobytes()
    monkeypatch.setattr(imagenet, "CLASSIFIERS", {hashlib.sha256(weight).hexdigest()})
    assert names_of(checkpoint) == imagenet_names()


@pytest.mark.shared
def test_apple_s_real_s0_is_known(shared):
    path = shared / "weights" / "mobileone_s0_fused.pth"
    assert names_of(read_checkpoint(path)) == imagenet_names()
