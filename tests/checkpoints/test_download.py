"""Public names, from files that stand for the publishers' servers."""

import hashlib
import socket

import pytest
import torch

from mobileone_q.checkpoints import download
from mobileone_q.checkpoints.download import fetch, find_public_file, is_name
from mobileone_q.checkpoints.key_maps import KEY_MAPS
from mobileone_q.checkpoints.load import load_model
from mobileone_q.errors import CheckpointError
from mobileone_q.files import cache_folder
from tests.helpers.cli import invoke, refused
from tests.helpers.networks import random_model, small


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder in place of every publisher's address, and a fresh cache."""
    root = tmp_path / "server"
    for publisher in ("APPLE", "HUB", "MMPRETRAIN", "JAHONGIR"):
        (root / publisher).mkdir(parents=True)
        monkeypatch.setattr(download, publisher, (root / publisher).as_uri())
    monkeypatch.setenv("MOBILEONE_Q_CACHE", str(tmp_path / "cache"))
    return root


def put(path, layout):
    path.parent.mkdir(parents=True, exist_ok=True)
    model = random_model(small())
    state = {KEY_MAPS[layout].from_own(key): value for key, value in model.state_dict().items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save(state, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_apple_s_file_is_fetched_once_and_watched(server):
    remote = server / "APPLE" / "mobileone_s0_unfused.pth.tar"
    digest = put(remote, "apple")
    path = fetch("apple:s0")
    assert load_model(path, "s0", 32)[1].layout == "apple"
    assert path.with_name(f"{path.name}.sha256").read_text().strip() == digest
    remote.unlink()
    assert fetch("apple:s0") == path  # from the cache
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="has changed since it was downloaded; delete it"):
        fetch("apple:s0")


def test_the_hub_s_hash_is_checked(server):
    hub = server / "HUB" / "mobileone_s0.apple_in1k"
    digest = put(hub / "resolve" / "main" / "model.safetensors", "timm")
    pointer = hub / "raw" / "main" / "model.safetensors"
    pointer.parent.mkdir(parents=True)
    pointer.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1\n")
    with pytest.raises(CheckpointError, match=f"has SHA-256 {digest}, and its publisher says 0000"):
        fetch("timm:mobileone_s0.apple_in1k")
    assert not list(cache_folder().iterdir())
    pointer.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize 1\n")
    path = fetch("timm:mobileone_s0.apple_in1k")
    assert load_model(path, "s0", 32)[1].layout == "timm"


def test_the_digits_in_mmpretrain_s_name_are_checked(server, monkeypatch):
    digest = put(server / "MMPRETRAIN" / "file.pth", "mmpretrain")
    for known in ("0bc94952", digest[:8]):
        monkeypatch.setitem(download.MMPRETRAIN_HASHES, "s0", known)
        remote = server / "MMPRETRAIN" / f"mobileone-s0_8xb32_in1k_20221110-{known}.pth"
        remote.write_bytes((server / "MMPRETRAIN" / "file.pth").read_bytes())
        if known == digest[:8]:
            assert load_model(fetch("mmpretrain:s0"), "s0", 32)[1].layout == "mmpretrain"
        else:
            with pytest.raises(CheckpointError, match="its publisher says 0bc94952"):
                fetch("mmpretrain:s0")


def test_addresses():
    apple = "https://docs-assets.developer.apple.com/ml-research/datasets/mobileone"
    assert find_public_file("apple:s0").url == f"{apple}/mobileone_s0_unfused.pth.tar"
    assert find_public_file("apple:s3-fused").url == f"{apple}/mobileone_s3.pth.tar"
    hub = "https://huggingface.co/timm/mobileone_s4.apple_in1k"
    assert find_public_file("timm:mobileone_s4.apple_in1k").url == f"{hub}/resolve/main/model.safetensors"
    assert find_public_file("jahongir7174:s1").url.endswith("/MobileOne/releases/download/v0.0.1/s1.pt")
    assert find_public_file("mmpretrain:s2").url.endswith("mobileone-s2_8xb32_in1k_20221110-9c7ecb97.pth")


@pytest.mark.parametrize("name", ["apple:s5", "timm:resnet50", "apple:", "mmpretrain:s0-fused"])
def test_unknown_names_list_the_known_forms(name):
    assert is_name(name)
    with pytest.raises(CheckpointError, match=r"no public weights called .*timm:mobileone_s0\.apple_in1k"):
        find_public_file(name)


def test_paths_are_not_names():
    assert not any(map(is_name, ("w.pth", "dir/apple.pth", "c:file", "apple")))


def test_offline_it_says_where_to_get_the_file(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setenv("MOBILEONE_Q_CACHE", str(tmp_path / "cache"))
    line = refused("calibrate", "--arch", "s0", "--weights", "apple:s0", "--data", tmp_path)
    assert "cannot download apple:s0" in line
    assert "Name or service not known" in line
    assert "fetch https://docs-assets.developer.apple.com" in line
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


def test_the_command_line_takes_a_name(server, tmp_path):
    put(server / "APPLE" / "mobileone_s0_unfused.pth.tar", "apple")
    out = tmp_path / "timm.safetensors"
    output = invoke("fuse", "--arch", "s0", "--image-size", 32, "--layout", "timm", "apple:s0", out)
    assert "fused, 1,063,754 parameters" in output
    assert load_model(out, "s0", 32)[1].layout == "timm"
