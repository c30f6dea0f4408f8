"""An archive for an issue report: versions, verdicts, logs and scores, without names and paths.

What identifies a person or a machine's folders is taken out of every text: absolute paths keep their last
part alone, and the user's and the host's names are replaced.
"""

from __future__ import annotations

import getpass
import io
import json
import re
import socket
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobileone_q.engines import EngineInfo
from mobileone_q.engines.base import sidecar
from mobileone_q.errors import FileError, MobileOneQError, RunError, printable
from mobileone_q.evaluation.device_score import read_score
from mobileone_q.files import read_json, write_bytes
from mobileone_q.report.provenance import installed_versions
from mobileone_q.runs.storage.folder import find_run
from mobileone_q.runs.storage.integrity import engine_files

LARGEST_LOG = 1 << 20  # bytes; the end of a build log says why it failed
# An absolute path of two parts or more, on POSIX or Windows, and a home that is written with a tilde.
PART = r"[^\s/\\\"':;,<>|]"
PATH = re.compile(rf"(?<![\w.~/\\])(?:[A-Za-z]:\\|~[\w.-]*/|/)(?:{PART}+[/\\])+({PART}*)")
SHORT_NAME = 3  # letters; a shorter user name would be replaced inside of words' neighbours


def write_issue_report(
    archive: Path, doctor: Mapping[str, Any], run_path: Path | None = None, score: Path | None = None
) -> list[str]:
    """Write a .zip for an issue report; returns the names of the files in it.

    ``doctor`` holds the doctor's verdicts as JSON values. With ``run_path``, the archive also has that
    run's report, build logs and engine sidecars. ``score`` is the path of a bundle's score.json.

    Raises:
        RunError: the archive exists, or there is no run at ``run_path``.
        FileError, EngineError: a file cannot be read, or ``score`` is not what score.py writes.
    """
    if archive.exists():
        raise RunError(f"{archive} exists; choose another name, so that nothing is lost")
    texts = {"doctor.json": _as_json({**doctor, "versions": installed_versions()})}
    if run_path is not None:
        texts |= _texts_of_run(run_path)
    if score is not None:
        read_score(score)
        texts["score.json"] = _as_json(read_json(score))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in texts.items():
            file.writestr(printable(name), scrub(text).encode("utf-8", "backslashreplace"))
    write_bytes(archive, buffer.getvalue())
    return list(texts)


def scrub(text: str, user: str | None = None, host: str | None = None) -> str:
    """A text without absolute paths, and without the names of the user and of the machine."""
    text = PATH.sub(r"…/\1", text)
    for name, stand_in in ((user or _user(), "USER"), (host or socket.gethostname(), "HOST")):
        if len(name) >= SHORT_NAME:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", stand_in, text)
    return text


def _texts_of_run(run_path: Path) -> dict[str, str]:
    run = find_run(run_path)
    texts = {"report.json": _as_json(run.read_report().model_dump(by_alias=True, mode="json"))}
    for engine in engine_files(run.path):
        try:
            EngineInfo.load(engine)
        except MobileOneQError as error:
            texts[f"{engine.name}.error.txt"] = str(error)
        else:
            texts[sidecar(engine).name] = _as_json(read_json(sidecar(engine)))
    for log in sorted((run.path / "engines").glob("*.log")):
        if log.is_file():
            texts[log.name] = _end_of(log)
    return texts


def _end_of(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - LARGEST_LOG, 0))
            return file.read(LARGEST_LOG).decode("utf-8", "replace")
    except OSError as error:
        raise FileError(f"cannot read {log}: {error.strerror}; check its permissions") from None


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return Path.home().name
