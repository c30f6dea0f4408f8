"""Public weights by name, such as ``timm:mobileone_s0.apple_in1k`` or ``apple:s0``.

A file is fetched once, into :func:`mobileone_q.files.cache_folder`, with its SHA-256 beside it. The
hash that the publisher states is checked first: the Hugging Face hub states all of it, mmpretrain's
file names state the first eight digits. Apple and jahongir7174 state none: there the first download is
trusted, which is said, and its hash is kept. A cached file that no longer has its hash is refused.

pooch transfers the files and tries again after a failure. Proxies come from the usual variables, such
as ``HTTPS_PROXY``. With ``MOBILEONE_Q_OFFLINE=1`` nothing is downloaded.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from mobileone_q.checkpoints.key_maps import KEY_MAPS
from mobileone_q.errors import CheckpointError
from mobileone_q.files import cache_folder, scratch_folder, sha256, write_atomically, write_text
from mobileone_q.progress import Advance, progress

OFFLINE = "MOBILEONE_Q_OFFLINE"
TIMEOUT_S = 60  # without a byte from the server
TRIES_AGAIN = 2  # after a transfer that failed
MEBIBYTE = 1 << 20  # the unit of progress
POINTER_SIZE = 4096  # a Git LFS pointer has some 130 bytes; no more than this is read of one
# A connection that carries the file's own bytes, so that their number can be compared with Content-Length.
HEADERS = {"Accept-Encoding": "identity"}
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


def is_public(digest: str) -> bool:
    """Whether a file with this SHA-256 holds public weights, all of which are trained on ImageNet-1k.

    Known are the hashes that publishers state, and those of the files that were downloaded here.
    """
    for name in public_names():
        public = find_public_file(name)
        stated = public.sha256 or _read_record(cache_folder() / f"{public.file}.sha256")
        if stated and digest.startswith(stated):
            return True
    return False


def public_names() -> Iterator[str]:
    """Every name that :func:`fetch` knows."""
    for variant in MMPRETRAIN_HASHES:
        yield from (f"apple:{variant}", f"apple:{variant}-fused", f"timm:mobileone_{variant}.apple_in1k")
        yield from (f"mmpretrain:{variant}", f"jahongir7174:{variant}")


def fetch(name: str) -> Path:
    """Download the file of a public name unless it is in the cache; return its path there.

    Raises:
        CheckpointError: the name is unknown, the file cannot be downloaded, or its hash is not what it
            should be.
        FileError: the cache cannot be read or written.
    """
    wanted = find_public_file(name)
    path = cache_folder() / wanted.file
    record = path.with_name(f"{path.name}.sha256")
    if path.is_file() and record.is_file():
        if sha256(path) != _read_record(record):
            raise CheckpointError(f"{path} has changed since it was downloaded; delete it and try again")
        return path
    if os.environ.get(OFFLINE, "0") not in ("", "0"):
        raise _unreachable(name, wanted.url, path, f"{OFFLINE} is set, and it is not in the cache")
    expected = wanted.sha256
    if wanted.pointer:
        expected = _read_pointer(name, wanted.pointer, path)

    def write(temporary: Path) -> None:
        with scratch_folder(path.parent, path.name) as folder:  # for what pooch has not finished
            fetched = folder / wanted.file
            _transfer(name, wanted.url, fetched, path, needs_length=not expected)
            os.replace(fetched, temporary)
        digest = sha256(temporary)
        if not digest.startswith(expected):
            raise CheckpointError(
                f"{wanted.url} has SHA-256 {digest}, and its publisher says {expected}; do not use it"
            )
        if not expected:
            _check_trustworthy(name, wanted.url, temporary, path)
            _say(f"{name}: its publisher states no SHA-256; trusted as first downloaded, {digest}")
        write_text(record, f"{digest}\n")

    write_atomically(path, write)
    return path


def _check_trustworthy(name: str, url: str, file: Path, path: Path) -> None:
    """Refuse to trust a web page, such as a hotel's, that came in place of a file without a known hash."""
    with file.open("rb") as opened:
        if opened.read(64).lstrip().startswith(b"<"):
            raise _unreachable(name, url, path, "the server sent a web page, not weights")


def _read_record(record: Path) -> str:
    """Read the hash that was kept beside a file. The result is empty if it cannot be read."""
    try:
        return record.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _read_pointer(name: str, url: str, path: Path) -> str:
    """Read the hash from a Git LFS pointer."""
    import requests

    try:
        with requests.get(url, timeout=TIMEOUT_S, stream=True, headers=HEADERS) as response:
            response.raise_for_status()
            text = b"".join(response.iter_content(POINTER_SIZE // 8))[:POINTER_SIZE]
    except _failures() as error:
        raise _unreachable(name, url, path, _reason(error)) from error
    found = re.search(rb"sha256:([0-9a-f]{64})\b", text)
    if found is None:
        raise CheckpointError(f"{url} no longer says the file's hash; download it by hand")
    return found[1].decode()


def _transfer(name: str, url: str, target: Path, path: Path, needs_length: bool) -> None:
    """Download ``url`` to ``target``, which must not be there; ``path`` is the place in the cache to name.

    ``needs_length`` refuses a file whose length the server does not say: nothing else would tell that
    the transfer was cut.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")  # it announces files in lines of its own
    client = pooch.create(
        target.parent,
        base_url="",
        registry={target.name: None},  # prefixes of hashes are known too, so fetch() compares them
        urls={target.name: url},
        retry_if_failed=TRIES_AGAIN,
    )

    def download(address: str, output: str, client: Any) -> None:
        with TransferProgress(f"fetching {name} (MiB)") as shown:
            transfer = pooch.HTTPDownloader(
                progressbar=shown, chunk_size=MEBIBYTE, timeout=TIMEOUT_S, headers=HEADERS
            )
            try:
                transfer(address, output, client)
            except _failures() as error:
                status = getattr(getattr(error, "response", None), "status_code", 0)
                if 400 <= status < 500:  # the server will say the same again
                    raise _unreachable(name, url, path, _reason(error)) from error
                raise ValueError(_reason(error)) from error  # pooch tries again
        size = Path(output).stat().st_size
        if needs_length and not shown.total:
            raise ValueError("the server does not say the file's length")
        if shown.total and size != shown.total:
            raise ValueError(f"the transfer was cut after {size:,} of {shown.total:,} bytes")

    try:
        client.fetch(target.name, downloader=download)
    except ValueError as error:
        raise _unreachable(name, url, path, _reason(error)) from error


class TransferProgress:
    """The bar that pooch fills, shown as the rest of this project shows progress.

    ``total`` is the file's length in bytes, as the server says; 0 where it does not.
    """

    def __init__(self, title: str) -> None:
        self.total = 0
        self._title = title
        self._shown = ExitStack()
        self._advance: Advance | None = None
        self._is_over = False

    def __enter__(self) -> TransferProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, count: int) -> None:
        """Take note of ``count`` bytes more, or of all of them at the end."""
        if self._is_over:
            return
        if self._advance is None and self.total:
            steps = -(-self.total // MEBIBYTE)
            self._advance = self._shown.enter_context(progress(self._title, steps))
        if self._advance is not None:
            self._advance(1)

    def reset(self) -> None:
        """Count no more: pooch calls this at the end, to fill the bar again."""
        self._is_over = True

    def close(self) -> None:
        """Leave the line or the bar."""
        self._shown.close()


def _failures() -> tuple[type[Exception], ...]:
    """What a transfer can end in. Disk errors are none of them: they are OSError, not a request's."""
    import requests
    import urllib3

    return (requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, ValueError)


def _reason(error: Exception) -> str:
    """Say in a few words why a transfer failed; requests wraps the cause in several layers."""
    import requests
    import urllib3

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    inner: Any = error
    while True:
        if isinstance(inner, (requests.Timeout, urllib3.exceptions.ReadTimeoutError)):
            return f"no answer for {TIMEOUT_S:g} s"
        deeper = getattr(inner, "reason", None) or next(
            (each for each in reversed(inner.args) if isinstance(each, Exception)), None
        )
        if not isinstance(deeper, Exception):
            return str(inner)
        inner = deeper


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _unreachable(name: str, url: str, path: Path, reason: str) -> CheckpointError:
    """Make the error for a download that failed; it says how to do without a network."""
    reason = " ".join(reason.split()) or "no reason given"
    return CheckpointError(
        f"cannot download {name} ({reason}); with a network elsewhere, fetch {url} and pass it "
        f"with --weights (it would be cached as {path})"
    )
