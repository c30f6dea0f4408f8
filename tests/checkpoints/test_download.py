"""Public names, from a server on this machine that stands for the publishers' own, and fails at will."""

import functools
import hashlib
import io
import socket
import time

import pytest
import safetensors.torch
import torch

from mobileone_q.checkpoints import download
from mobileone_q.checkpoints.download import fetch, find_public_file, is_name
from mobileone_q.checkpoints.key_maps import KEY_MAPS
from mobileone_q.checkpoints.load import load_model
from mobileone_q.errors import CheckpointError, FileError
from mobileone_q.files import cache_folder
from tests.helpers.cli import invoke, refused
from tests.helpers.faulty_server import faulty_server
from tests.helpers.networks import random_model, small
from tests.helpers.processes import dead_pid

PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")
APPLE_FILE = "APPLE/mobileone_s0_unfused.pth.tar"


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A server in place of every publisher's address, and a fresh cache."""
    root = tmp_path / "server"
    for proxy in PROXIES:
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.delenv("MOBILEONE_Q_OFFLINE", raising=False)
    monkeypatch.setenv("MOBILEONE_Q_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)  # before it tries again
    with faulty_server(root) as running:
        for publisher in ("APPLE", "HUB", "MMPRETRAIN", "JAHONGIR"):
            (root / publisher).mkdir(parents=True)
            monkeypatch.setattr(download, publisher, f"{running.address}/{publisher}")
        yield running


@pytest.fixture
def server(web):
    """The folder that the server serves."""
    return web.root


@functools.cache
def checkpoint(layout, suffix):
    """The bytes of a checkpoint."""
    model = random_model(small())
    state = {KEY_MAPS[layout].from_own(key): value for key, value in model.state_dict().items()}
    if suffix == ".safetensors":
        return safetensors.torch.save(state)
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def put(path, layout):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(checkpoint(layout, path.suffix))
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


def test_what_a_killed_download_left_goes_with_the_next(server):
    put(server / "APPLE" / "mobileone_s0_unfused.pth.tar", "apple")
    left = cache_folder() / f".mobileone_s0.pth.partial-{dead_pid()}-abc"
    left.mkdir(parents=True)
    (left / "tmpabc").write_text("half")
    path = fetch("apple:s0")
    assert sorted(cache_folder().iterdir()) == [path, path.with_name(f"{path.name}.sha256")]


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
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    for proxy in PROXIES:
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


def failure():
    """The single line of a download that fails, and nothing is left in the cache."""
    with pytest.raises(CheckpointError) as caught:
        fetch("apple:s0")
    message = str(caught.value)
    assert "\n" not in message
    assert "cannot download apple:s0 (" in message
    assert str(cache_folder()) in message
    assert not list(cache_folder().iterdir())
    return message


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("cut", "bytes"),
        ("cut_without_length", "does not say the file's length"),
        ("odd_length", ""),
        ("stall", "no answer for 0.1 s"),
        ("silent", "no answer for 0.1 s"),
        ("garble", ""),
        ("garble_headers", ""),
        ("garble_chunks", ""),
        ("garble_gzip", ""),
        ("hang_up", ""),
        ("redirect", "redirects"),
        ("redirect_to_file", ""),
        ("redirect_nowhere", ""),
        ("page", "a web page"),
        ("missing", "the server answers 404"),
        ("busy", "the server answers 503"),
    ],
)
def test_a_server_that_fails_ends_in_one_line(web, monkeypatch, fault, said):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.1 if "no answer" in said else 0.3)
    put(web.root / APPLE_FILE, "apple")
    web.always = fault
    started = time.monotonic()
    assert said in failure()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("fault", ["cut", "stall", "garble", "hang_up", "busy"])
def test_a_transfer_that_failed_starts_again(web, monkeypatch, fault):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.3)
    digest = put(web.root / APPLE_FILE, "apple")
    web.plan = [fault, fault]
    path = fetch("apple:s0")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert len(web.asked) == 3


def test_a_missing_file_is_asked_for_once(web):
    failure()
    assert len(web.asked) == 1


def test_redirects_are_followed(web):
    digest = put(web.root / APPLE_FILE, "apple")
    web.plan = ["redirect", "redirect"]
    assert hashlib.sha256(fetch("apple:s0").read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("fault", ["cut", "garble", "stall", "missing", "page", "redirect"])
def test_a_failing_pointer_ends_in_one_line_too(web, monkeypatch, fault):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.3)
    pointer = web.root / "HUB" / "mobileone_s0.apple_in1k" / "raw" / "main" / "model.safetensors"
    pointer.parent.mkdir(parents=True)
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n" * 20)
    web.always = fault
    with pytest.raises(
        CheckpointError, match=r"cannot download timm|no longer says the file's hash"
    ) as caught:
        fetch("timm:mobileone_s0.apple_in1k")
    assert "\n" not in str(caught.value)
    assert not cache_folder().exists() or not list(cache_folder().iterdir())


def test_trust_on_first_use_is_said_once(web, capfd):
    digest = put(web.root / APPLE_FILE, "apple")
    fetch("apple:s0")
    said = [line for line in capfd.readouterr().err.splitlines() if "SHA-256" in line]
    assert said == [f"apple:s0: its publisher states no SHA-256; trusted as first downloaded, {digest}"]
    put(web.root / APPLE_FILE, "timm")  # other bytes on the server: the cache is not asked again
    fetch("apple:s0")
    assert "SHA-256" not in capfd.readouterr().err
    assert len(web.asked) == 1


def test_a_file_that_changed_at_its_publisher_is_refused(web, monkeypatch):
    """The digits of mmpretrain's name stay the same when the file behind it does not."""
    digest = put(web.root / "file.pth", "mmpretrain")
    monkeypatch.setitem(download.MMPRETRAIN_HASHES, "s0", digest[:8])
    put(web.root / "MMPRETRAIN" / f"mobileone-s0_8xb32_in1k_20221110-{digest[:8]}.pth", "timm")
    with pytest.raises(CheckpointError, match=f"its publisher says {digest[:8]}; do not use it"):
        fetch("mmpretrain:s0")
    assert not list(cache_folder().iterdir())


def test_a_file_without_its_record_is_fetched_again(web):
    digest = put(web.root / APPLE_FILE, "apple")
    path = fetch("apple:s0")
    path.with_name(f"{path.name}.sha256").unlink()  # as a command that was killed between the two leaves it
    path.write_bytes(b"half")
    assert hashlib.sha256(fetch("apple:s0").read_bytes()).hexdigest() == digest


def test_a_record_that_cannot_be_read_vouches_for_nothing(web):
    put(web.root / APPLE_FILE, "apple")
    path = fetch("apple:s0")
    path.with_name(f"{path.name}.sha256").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="has changed since it was downloaded"):
        fetch("apple:s0")


def test_offline_mode_asks_nobody(web, monkeypatch, tmp_path):
    put(web.root / APPLE_FILE, "apple")
    monkeypatch.setenv("MOBILEONE_Q_OFFLINE", "1")
    line = refused("fuse", "--arch", "s0", "apple:s0", tmp_path / "fused.safetensors")
    assert "cannot download apple:s0 (MOBILEONE_Q_OFFLINE is set, and it is not in the cache)" in line
    assert not web.asked
    monkeypatch.setenv("MOBILEONE_Q_OFFLINE", "0")
    path = fetch("apple:s0")
    monkeypatch.setenv("MOBILEONE_Q_OFFLINE", "1")
    assert fetch("apple:s0") == path


def test_a_proxy_of_the_environment_is_used(web, monkeypatch):
    """The server plays the proxy: it is asked for the whole address."""
    monkeypatch.setattr(download, "APPLE", "http://example.invalid/mobileone")
    monkeypatch.setenv("http_proxy", web.address)
    monkeypatch.setenv("no_proxy", "")
    failure()
    assert web.asked == ["http://example.invalid/mobileone/mobileone_s0_unfused.pth.tar"]


def test_a_full_disk_is_not_called_a_network_fault(web, monkeypatch):
    import errno

    def no_space(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    put(web.root / APPLE_FILE, "apple")
    monkeypatch.setattr("pooch.core.shutil.move", no_space)
    with pytest.raises(FileError, match=r"cannot write .*: No space left on device"):
        fetch("apple:s0")
    assert not list(cache_folder().iterdir())


def test_progress_counts_mebibytes(web, monkeypatch, capfd):
    monkeypatch.setattr("mobileone_q.progress.LINE_EVERY_S", 0)
    (web.root / APPLE_FILE).write_bytes(bytes(5 * 2**19))
    fetch("apple:s0")
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("fetching apple:s0")]
    assert [line.split(": ", 1)[1].split(",")[0].split(" of ")[0] for line in lines[:3]] == ["1", "2", "3"]
    assert "3 of 3" in lines[2]
