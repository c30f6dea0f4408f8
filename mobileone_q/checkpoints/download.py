"""Public weights by name, such as ``timm:mobileone_s0.apple_in1k`` or ``apple:s0``.

A file is fetched once, into :func:`mobileone_q.files.cache_folder`, with its SHA-256 beside it. The
hash that the publisher states is checked first: the Hugging Face hub states all of it, mmpretrain's
file names state the first eight digits. Apple and jahongir7174 state none: there the hash of the first
download is kept. A cached file that no longer has its hash is refused.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobileone_q.checkpoints.key_maps import KEY_MAPS
from mobileone_q.errors import CheckpointError
from mobileone_q.files import cache_folder, sha256, write_atomically, write_text

TIMEOUT_S = 60
APPLE = "https://docs-assets.developer.apple.com/ml-research/datasets/mobileone"
HUB = "https://huggingface.co/timm"
MMPRETRAIN = "https://download.openmmlab.com/mmclassification/v0/mobileone"
JAHONGIR = "https://github.com/jahongir7174/MobileOne/releases/download/v0.0.1"
MMPRETRAIN_HASHES = {"s0": "0bc94952", "s1": "ceeef467", "s2": "9c7ecb97", "s3": "c95eb3bf", "s4": "28d888cb"}
PUBLISHERS = tuple(KEY_MAPS)  # each has a layout of its own


@dataclass(frozen=True)
class PublicFile:
    """The address of a file, its name in the cache, and what is known of its hash.

    ``sha256`` is the hash, or its first digits. ``pointer`` is the address of a text that holds
    ``sha256:<hash>``.
    """

    url: str
    file: str
    sha256: str = ""
    pointer: str | None = None


def is_name(weights: str) -> bool:
    """Whether ``weights`` is the public name of a file, not a path."""
    return weights.partition(":")[0] in PUBLISHERS and ":" in weights


def find_public_file(name: str) -> PublicFile:
    """Find the file of a public name.

    Raises:
        CheckpointError: there is no such name.
    """
    publisher, _, model = name.partition(":")
    match = re.fullmatch(r"(?:mobileone_)?(s[0-4])(\.apple_in1k|-fused)?", model)
    ending = match[2] if match else None
    if match and publisher == "apple" and ending != ".apple_in1k":
        file = f"mobileone_{match[1]}{'' if ending else '_unfused'}.pth.tar"
        return PublicFile(f"{APPLE}/{file}", f"apple-{file}")
    if match and publisher == "timm" and ending != "-fused":
        repository = f"mobileone_{match[1]}.apple_in1k"
        place = f"{HUB}/{repository}"
        return PublicFile(
            f"{place}/resolve/main/model.safetensors",
            f"timm-{repository}.safetensors",
            pointer=f"{place}/raw/main/model.safetensors",
        )
    if match and publisher == "mmpretrain" and ending is None:
        digits = MMPRETRAIN_HASHES[match[1]]
        file = f"mobileone-{match[1]}_8xb32_in1k_20221110-{digits}.pth"
        return PublicFile(f"{MMPRETRAIN}/{file}", f"mmpretrain-{file}", sha256=digits)
    if match and publisher == "jahongir7174" and ending is None:
        return PublicFile(f"{JAHONGIR}/{match[1]}.pt", f"jahongir7174-{match[1]}.pt")
    raise CheckpointError(
        f"no public weights called {name}: choose apple:s0, apple:s0-fused, timm:mobileone_s0.apple_in1k, "
        "mmpretrain:s0 or jahongir7174:s0 (s0 to s4)"
    )


def fetch(name: str) -> Path:
    """Download the file of a public name unless it is in the cache; return its path there.

    Raises:
        CheckpointError: the name is unknown, there is no network, or the hash is not what it should be.
        FileError: the cache cannot be read or written.
    """
    wanted = find_public_file(name)
    path = cache_folder() / wanted.file
    record = path.with_name(f"{path.name}.sha256")
    if path.is_file() and record.is_file():
        if sha256(path) != record.read_text(encoding="utf-8").strip():
            raise CheckpointError(f"{path} has changed since it was downloaded; delete it and try again")
        return path
    expected = wanted.sha256
    if wanted.pointer:
        found = re.search(rb"sha256:([0-9a-f]{64})", _open(name, wanted.pointer, path).read(4096))
        if found is None:
            raise CheckpointError(f"{wanted.pointer} no longer says the file's hash; download it by hand")
        expected = found[1].decode()

    def write(temporary: Path) -> None:
        with _open(name, wanted.url, path) as response, temporary.open("wb") as file:
            try:
                while chunk := response.read(1 << 20):
                    file.write(chunk)
            except (OSError, ValueError) as error:
                raise _unreachable(name, wanted.url, path, str(error)) from error
        digest = sha256(temporary)
        if not digest.startswith(expected):
            raise CheckpointError(
                f"{wanted.url} has SHA-256 {digest}, and its publisher says {expected}; do not use it"
            )
        write_text(record, f"{digest}\n")

    write_atomically(path, write)
    return path


def _open(name: str, url: str, path: Path) -> Any:
    """Open a connection that reads ``url``."""
    try:
        return urllib.request.urlopen(url, timeout=TIMEOUT_S)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise _unreachable(name, url, path, str(getattr(error, "reason", error))) from error


def _unreachable(name: str, url: str, path: Path, reason: str) -> CheckpointError:
    """Make the error for a download that failed; it says how to do without a network."""
    reason = " ".join(reason.split()) or "no reason given"
    return CheckpointError(
        f"cannot download {name} ({reason}); with a network elsewhere, fetch {url} and pass it "
        f"with --weights (it would be cached as {path})"
    )
