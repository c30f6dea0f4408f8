"""The build.sh of a bundle: one line of trtexec for each version of TensorRT.

The script finds trtexec, picks the line of the version that it finds, and has record.py note the state of
the device while trtexec times the engine. Of a run with two INT8 graphs it builds both and keeps the better
(:mod:`mobileone_q.runs.bundles.graph_choice`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mobileone_q.engines import BuildOptions
from mobileone_q.engines.tensorrt.trtexec import trtexec_line
from mobileone_q.jetpack import NO_DLA, dla_form
from mobileone_q.names import ActivationGrids
from mobileone_q.runs.bundles.graph_choice import choice, functions

ENGINE = "model.plan"
# A line for each version, which also serves those up to the next; DLA comes and goes between them.
VERSIONS = ("8.5", "8.6", "10.3", "10.8", "11.1", "11.4.1")

SCRIPT = r"""#!/bin/sh
# Build {engine} on this device with the TensorRT that it has. Written by mobileone-q.
set -eu
cd "$(dirname "$0")"
ASK='import tensorrt; print(tensorrt.__version__)'
VERSION=${{TENSORRT_VERSION:-$(python3 -c "$ASK" 2>/dev/null || true)}}
NUMBER='0*\([0-9][0-9]*\)'
PARTS=$(echo "$VERSION" | sed -n "s/^$NUMBER\.$NUMBER\(\.$NUMBER\)\{{0,1\}}.*/\1 \2 \4/p")
if [ -z "$PARTS" ]; then
  echo "the version of TensorRT is not known, as python3 has no module of it; set TENSORRT_VERSION=10.3.0" >&2
  exit 1
fi
set -- $PARTS
MAJOR=$1 MINOR=$2 PATCH=${{3:-0}}
NUMBER=$((MAJOR * 10000 + MINOR * 100 + PATCH))
TRTEXEC=${{TRTEXEC:-/usr/src/tensorrt/bin/trtexec}}  # where JetPack puts it; containers have it on PATH
if [ ! -x "$TRTEXEC" ]; then TRTEXEC=$(command -v trtexec || true); fi
if [ -z "$TRTEXEC" ]; then echo "trtexec was not found; set TRTEXEC to its path" >&2; exit 1; fi
{calibration}{branches}
"""
CALIBRATION = """# TensorRT calibrates anew where a cache's first line is not its own version.
HEADER=$NUMBER
if [ "$MAJOR" -lt 10 ]; then HEADER=$((MAJOR * 1000 + MINOR * 100 + PATCH)); fi
sed "1s/.*/TRT-$HEADER-EntropyCalibration2/" int8.calib > model.calib
"""


def build_script(
    graphs: Mapping[str, Mapping[ActivationGrids, str]],
    options: BuildOptions,
    image: tuple[int, int, int],
    costs: Mapping[ActivationGrids, float],
    max_kl: float | None,
) -> str:
    """The text of build.sh.

    ``graphs`` names, for each of :data:`VERSIONS`, the file of each graph, and ``image`` is the shape of one
    input. ``costs`` are the recorded KL of
    two graphs, in nats, and ``max_kl`` their limit; empty and None where there is one graph.
    """
    lines = {}
    for version, names in graphs.items():
        commands = []
        for grids, name in names.items():
            engine = f"{grids}.plan" if costs else ENGINE
            command = _line(version, name, engine, options, image)
            commands.append(f"build {grids} {command}" if costs else command)
        lines[version] = "; ".join(commands)
    branches = _branches(lines)
    if costs and max_kl is not None:
        branches = f"{functions(max_kl)}{branches}{choice(costs, ENGINE)}"
    calibration = CALIBRATION if options.calibration_cache else ""
    return SCRIPT.format(engine=ENGINE, calibration=calibration, branches=branches)


def _branches(lines: dict[str, str]) -> str:
    """The lines as one ``if``: the latest version comes first, and the first serves what is older too."""
    text, word = "", "if"
    for version in reversed(VERSIONS[1:]):
        text += f'{word} [ "$NUMBER" -ge {_number(version)} ]; then\n  {lines[version]}\n'
        word = "elif"
    return f"{text}else\n  {lines[VERSIONS[0]]}\nfi"


def _number(version: str) -> int:
    """A version as one number: 10.3 is 100300."""
    major, minor, patch = (*(int(part) for part in version.split(".")), 0)[:3]
    return major * 10000 + minor * 100 + patch


def _line(version: str, graph: str, engine: str, options: BuildOptions, image: tuple[int, int, int]) -> str:
    form = dla_form(tuple(int(part) for part in version.split(".")))
    if options.dla_core is not None:
        wanted = "cache" if options.calibration_cache else "qdq"
        if form is None:
            return _refusal(f"TensorRT $VERSION has no DLA. {NO_DLA}")
        if options.precision == "int8" and form != wanted:
            target = "dla" if form == "cache" else "dla-qdq"
            return _refusal(f"DLA in TensorRT $VERSION needs a bundle calibrated with --target {target}")
    if options.calibration_cache:
        options = replace(options, calibration_cache="model.calib")
    return f"python3 record.py {engine}.device.json {trtexec_line(version, graph, engine, options, image)}"


def _refusal(reason: str) -> str:
    return f'echo "{reason}" >&2; exit 1'
