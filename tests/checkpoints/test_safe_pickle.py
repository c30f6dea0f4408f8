"""Pickles are read without running them: whole modules give their weights, traps give an error."""

import io
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mobileone_q.checkpoints.key_maps import KEY_MAPS
from mobileone_q.checkpoints.load import load_model, read_checkpoint
from mobileone_q.errors import MobileOneQError
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel
from tests.helpers.networks import random_images, random_model, relative_error, small


class Touch:
    """Pickles into a call that writes the file ``path``."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (Path(self.path), "written")


class Evaluate(Touch):
    def __reduce__(self):
        return eval, (f"open({str(self.path)!r}, 'w').write('written')",)


class Method:
    """Pickles into ``getattr(Path, "write_text")``: getattr is a name that networks need."""

    def __reduce__(self):
        return getattr, (Path, "write_text")

    def __call__(self):
        raise AssertionError("never called: pickle only wants something callable here")


class Chained(Touch):
    """Reaches for the dangerous function through an allowed one."""

    def __reduce__(self):
        return Method(), (Path(self.path), "written")


TRAPS = [Touch, Evaluate, Chained]


def write_torch(value, path):
    torch.save(value, path)


def write_legacy(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


def write_pickle(value, path):
    path.write_bytes(pickle.dumps(value, protocol=2))


def write_protocol_4(value, path):
    """Torch's zip with the newer opcodes, which name globals in another way."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, protocol=4))


LOADERS = {
    "checkpoint": read_checkpoint,
    "model": lambda path: load_model(path, "s0"),
    "fused": FusedModel.load,
    "quantized": QuantizedModel.load,
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pth.tar", ".safetensors"])
@pytest.mark.parametrize("write", [write_torch, write_legacy, write_pickle, write_protocol_4])
@pytest.mark.parametrize("trap", TRAPS)
def test_traps_are_refused_by_every_loader(tmp_path, trap, write, suffix, loader):
    written = tmp_path / "written"
    value = {"state_dict": {"stem.weight": torch.zeros(1)}, "extra": trap(written)}
    if write in (write_pickle, write_protocol_4):
        value = {"state_dict": trap(written)}
    write(value, tmp_path / f"w{suffix}")
    with pytest.raises(MobileOneQError, match=r"w\.p|w\.safe"):
        LOADERS[loader](tmp_path / f"w{suffix}")
    assert not written.exists()


@pytest.mark.parametrize("trap", TRAPS)
def test_the_traps_do_spring_when_unpickled_plainly(tmp_path, trap):
    """Otherwise the test above would prove nothing."""
    pickle.loads(pickle.dumps(trap(tmp_path / "written")))
    assert (tmp_path / "written").read_text().startswith("written")


def test_data_files_are_not_unpickled(tmp_path):
    from mobileone_q.data.sources import ImageFolder

    np.save(tmp_path / "w.npy", np.array([Touch(tmp_path / "written")]), allow_pickle=True)
    (tmp_path / "w.npy").rename(tmp_path / "w.png")
    images = ImageFolder(tmp_path)
    with pytest.raises(Exception, match="cannot identify"):
        images.open(0)
    assert not (tmp_path / "written").exists()


@pytest.fixture
def foreign(monkeypatch):
    """A module ``nets.nn`` with a network class, which is gone again when its pickle is read."""
    package, module = types.ModuleType("nets"), types.ModuleType("nets.nn")

    class Node(nn.Module):
        def __setstate__(self, state):
            raise AssertionError("code of the pickled class ran")

        def other_forward(self, x):
            return x

    Node.__module__, Node.__qualname__ = "nets.nn", "Node"
    module.Node = Node
    monkeypatch.setitem(sys.modules, "nets", package)
    monkeypatch.setitem(sys.modules, "nets.nn", module)

    def build(state):
        """Nested modules that hold these tensors under these dotted names."""
        root = Node()
        for key, value in state.items():
            *path, leaf = key.split(".")
            node = root
            for part in path:
                if part not in node._modules:
                    node.add_module(part, Node())
                node = node._modules[part]
            if "running" in leaf or "num_batches" in leaf:
                node.register_buffer(leaf, value)
            else:
                node.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
        for node in root.modules():
            node.forward = node.other_forward  # as jahongir7174's fused blocks do
        root.note = {"layers": [1, 2], "act": nn.ReLU(), "dtype": torch.float16, "size": torch.Size([3])}
        return root

    return build


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("network", ["branches", "fused"])
def test_a_pickled_module_gives_its_weights(tmp_path, foreign, network, half, monkeypatch):
    model = random_model(small("s4"))
    source = model if network == "branches" else fuse_branches(model)
    state = {KEY_MAPS["jahongir7174"].from_own(k): v for k, v in source.state_dict().items()}
    module = foreign(state)
    torch.save({"model": module.half() if half else module}, tmp_path / "s4.pt")
    for name in ("nets", "nets.nn"):
        monkeypatch.delitem(sys.modules, name)
    loaded, checkpoint = load_model(tmp_path / "s4.pt", "s4", 32)
    assert checkpoint.layout == "jahongir7174"
    assert checkpoint.is_fused == (network == "fused")
    x = random_images(model.arch)
    assert relative_error(source(x), loaded(x)) < (1e-2 if half else 1e-6)


def test_a_bare_pickled_module(tmp_path, foreign):
    state = {KEY_MAPS["timm"].from_own(k): v for k, v in random_model(small()).state_dict().items()}
    torch.save(foreign(state), tmp_path / "w.pt")
    assert load_model(tmp_path / "w.pt", "s0", 32)[1].layout == "timm"


def test_trainers_extras_do_not_stand_in_the_way(tmp_path):
    import argparse

    model = random_model(small())
    state = {KEY_MAPS["timm"].from_own(k): v for k, v in model.state_dict().items()}
    extras = {"args": argparse.Namespace(lr=0.1), "metric": np.float64(71.4), "epoch": 5}
    torch.save({"state_dict": state, **extras}, tmp_path / "w.pth.tar")
    assert load_model(tmp_path / "w.pth.tar", "s0", 32)[1].layout == "timm"


def refusal(path):
    with pytest.raises(MobileOneQError) as caught:
        read_checkpoint(path)
    return str(caught.value)


def test_what_torch_never_writes_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"stem.weight": torch.zeros(3)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}

    def rewrite(changes, compression=zipfile.ZIP_STORED):
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in (entries | changes).items():
                if data is not None:
                    archive.writestr(name, data)

    storage = next(name for name in entries if name.endswith("data/0"))
    order = next((name for name in entries if name.endswith("byteorder")), "w/byteorder")
    rewrite({}, zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(path)
    rewrite({storage: b"1234"})
    assert "shorter than it says" in refusal(path)
    rewrite({storage: None})
    assert "damaged" in refusal(path)
    rewrite({order: b"big"})
    assert "big-endian" in refusal(path)
    torch.save({"stem.weight": torch.zeros(1).expand(10**12)}, path)
    assert "larger than its storage" in refusal(path)
    buffer = io.BytesIO()
    torch.save([1], buffer)
    path.write_bytes(buffer.getvalue())
    assert "holds a list" in refusal(path)


def put_pickle(path, data):
    """A file of torch's that holds this pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    return path


@pytest.mark.parametrize("index", [100, 300_000_000, 0xFFFFFFFF])
def test_a_memo_index_asks_for_no_memory(tmp_path, index):
    """Python would keep an array of that many places: 2.3 GB for 300 million."""
    bomb = b"\x80\x02}r" + index.to_bytes(4, "little") + b"."
    path = put_pickle(tmp_path / "w.pth", bomb)
    assert "a memo index that is larger than the pickle" in refusal(path)


def test_the_text_form_of_the_memo_too(tmp_path):
    path = put_pickle(tmp_path / "w.pth", b"\x80\x02}p4294967295\n.")
    assert "a memo index that is larger than the pickle" in refusal(path)


@pytest.mark.parametrize(
    "claim", [b"\x8d" + (2**40).to_bytes(8, "little"), b"\x96" + (2**40).to_bytes(8, "little")]
)
def test_a_length_beyond_the_pickle(tmp_path, claim):
    assert "damaged or cut short" in refusal(put_pickle(tmp_path / "w.pth", b"\x80\x05" + claim + b"x."))


def test_entries_that_overlap(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"stem.weight": torch.zeros(5000)}, path)
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02")  # the directory's last entry
    data[at + 20 : at + 28] = (10**6).to_bytes(4, "little") * 2
    path.write_bytes(data)
    assert "overlap" in refusal(path)


@pytest.mark.parametrize("depth", [100, 5000])
@pytest.mark.parametrize("key", ["state_dict", "model", "other"])
def test_deep_nesting(tmp_path, depth, key):
    data = (
        b"\x80\x02"
        + (b"}X" + len(key).to_bytes(4, "little") + key.encode()) * depth
        + b"}"
        + b"s" * depth
        + b"."
    )
    refusal(put_pickle(tmp_path / "w.pth", data))


def test_a_wrapper_that_holds_itself(tmp_path):
    value = {}
    value["state_dict"] = value
    path = put_pickle(tmp_path / "w.pth", pickle.dumps(value, protocol=2))
    assert "damaged" in refusal(path)


def modules_in_modules(depth, count):
    """A pickle of a network whose modules hold the same child ``count`` times, ``depth`` deep."""
    node = nn.Module()
    for _ in range(depth):
        outer = nn.Module()
        for number in range(count):
            outer._modules[str(number)] = node
        node = outer
    return pickle.dumps(node, protocol=2)


@pytest.mark.parametrize(("depth", "count"), [(40, 2), (150, 1)])
def test_modules_without_end(tmp_path, depth, count):
    path = put_pickle(tmp_path / "w.pth", modules_in_modules(depth, count))
    assert "nested without end" in refusal(path)


def test_a_module_that_holds_itself(tmp_path):
    node = nn.Module()
    node._modules["again"] = node
    path = put_pickle(tmp_path / "w.pth", pickle.dumps(node, protocol=2))
    assert "nested without end" in refusal(path)


def write_old(folder: Path) -> Path:
    """The small network as torch before 1.6 wrote it, with a tensor more of a length of its own."""
    path = folder / "old.pth"
    state = {**random_model(small()).state_dict(), "extra": torch.zeros(12345)}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def test_an_old_file_is_read(tmp_path):
    state = read_checkpoint(write_old(tmp_path)).state
    assert torch.equal(state["head.weight"], random_model(small()).state_dict()["head.weight"])


def test_an_old_file_cannot_claim_more_than_it_holds(tmp_path, monkeypatch):
    """torch would reserve the 8 GB that this one claims."""
    path = write_old(tmp_path)
    honest, claimed = b"M" + (12345).to_bytes(2, "little"), b"J" + (2**31 - 1).to_bytes(4, "little")
    content = path.read_bytes()
    assert content.count(honest) >= 2  # of the storage and of the tensor
    path.write_bytes(content.replace(honest, claimed))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch was asked"))
    with pytest.raises(MobileOneQError, match=r"old\.pth is damaged.*claims 8,\d+,\d+,\d+ bytes"):
        read_checkpoint(path)
