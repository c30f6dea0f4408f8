"""Mutation testing: change a module's arithmetic, and see whether its own tests notice.

    python benchmarks/mutate.py
    python benchmarks/mutate.py --only fuse grids --mutants 40 --seed 3

A mutant differs in one place: a comparison, an operator, a number, a condition, or a call that is left
out. The places are a fixed random sample. A mutant is killed if a test of its module fails. Survivors
are printed with their line. docs/mutation-testing.md has the scores, and what was made of the survivors.

Tools for this start pytest anew for each mutant. Here importing torch, onnx and ONNX Runtime takes
longer than most of these tests, so that they are imported once, and each mutant is a fork of that
process. The shortest tests run first, since most mutants fail one of them.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.util
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 120  # of CPU time, beyond which a mutant counts as killed
SEED = 17
# Each module, and its own tests.
MODULES = {
    "fuse": ("mobileone_q/models/fuse.py", ("tests/models/test_fuse.py",)),
    "grids": (
        "mobileone_q/models/grids.py",
        ("tests/models/test_grids.py", "tests/models/test_quantized.py"),
    ),
    "rounding": ("calibrate/rounding.py", ("tests/calibrate/test_rounding.py",)),
    "equalize": ("calibrate/equalize.py", ("tests/calibrate/test_equalize.py",)),
    "graph": ("mobileone_q/export/graph.py", ("tests/export/test_graph.py",)),
    "layer_map": (
        "mobileone_q/engines/layer_map.py",
        ("tests/engines/test_layer_map.py", "tests/engines/test_inspection.py"),
    ),
    "integrity": (
        "mobileone_q/runs/storage/integrity.py",
        ("tests/runs/storage/test_records_of_files.py", "tests/runs/storage/test_integrity.py"),
    ),
}
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.Add: ast.Sub,
    ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "all": "any", "any": "all", "floor": "ceil", "ceil": "floor"}


@dataclass(frozen=True)
class Mutant:
    """The source of a module with one place changed, and that place in words."""

    source: str
    what: str


def mutants(source: str) -> list[Mutant]:
    """Every mutant of a module's source, in the order of its lines."""
    tree = ast.parse(source)
    ignored = {id(node) for skipped in _unmutated(tree) for node in ast.walk(skipped)}
    found = []
    for index, node in enumerate(ast.walk(tree)):
        if id(node) in ignored:
            continue
        for number in range(len(_changes(node))):
            changed = copy.deepcopy(tree)
            twin = next(each for k, each in enumerate(ast.walk(changed)) if k == index)
            _changes(twin)[number]()
            line = getattr(node, "lineno", None)
            if line is None:
                continue
            text = ast.unparse(ast.fix_missing_locations(changed))
            found.append((line, Mutant(text, f"line {line}: {_shown(node)} -> {_shown(twin)}")))
    return [mutant for _, mutant in sorted(found, key=lambda pair: pair[0])]


def _unmutated(tree: ast.Module) -> Iterator[ast.AST]:
    """Docstrings and annotations, which do not run, and imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node
        for name in ("annotation", "returns"):
            if getattr(node, name, None) is not None:
                yield getattr(node, name)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node


def _changes(node: ast.AST) -> list:
    """Functions that each change a node in place, in one of the ways that suit its kind."""
    if isinstance(node, ast.Compare):
        return [lambda: _set(node, "ops", [_swapped(node.ops[0]), *node.ops[1:]])]
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in SWAPS:
        return [lambda: _set(node, "op", _swapped(node.op))]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        plus = ast.UAdd() if isinstance(node.op, ast.USub) else None
        return [lambda: _set(node, "op", plus) if plus else _drop_not(node)]
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        return [lambda: _set(node, "test", ast.UnaryOp(ast.Not(), node.test))]
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        return [lambda: _set(node, "value", _other(node.value))]
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return [lambda: _set(node, "value", ast.Constant(None))]
    if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in NAMES:
        key = "id" if isinstance(node.func, ast.Name) else "attr"
        return [lambda: _set(node.func, key, NAMES[getattr(node.func, key)])]
    return []


def _set(node: ast.AST, name: str, value: object) -> None:
    setattr(node, name, value)


def _drop_not(node: ast.UnaryOp) -> None:
    """``not x`` becomes ``not not x``, which is as true as ``x``."""
    node.operand = ast.UnaryOp(ast.Not(), node.operand)


def _swapped(operator: ast.AST) -> ast.AST:
    return SWAPS[type(operator)]() if type(operator) in SWAPS else operator


def _other(value: bool | int | float) -> bool | int | float:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else 2 * value or 1.0


def _shown(node: ast.AST) -> str:
    if isinstance(node, ast.If):
        node = node.test
    return ast.unparse(ast.fix_missing_locations(node)).split("\n")[0][:90]


class Replaced(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from other source."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self.name, self.path, self.source = name, path, source

    def find_spec(self, name: str, path: object = None, target: object = None):
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def create_module(self, spec: object) -> None:
        return None

    def exec_module(self, module) -> None:
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)


class ShortestFirst:
    """A pytest plugin: the tests that took least run first, and how long each takes is noted."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._known, self.seconds = seconds, dict[str, float]()

    def pytest_collection_modifyitems(self, items: list) -> None:
        items.sort(key=lambda item: self._known.get(item.nodeid, 0.0))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration


def passes(path: Path, source: str, tests: tuple[str, ...], notes: Path) -> bool:
    """Whether a module's tests pass with other source of it, in a fork of this process.

    ``notes`` is a JSON file of how long each test takes. It is written if it is not there yet.
    """
    child = os.fork()
    if child == 0:
        _run_tests(path, source, tests, notes)
    return os.waitpid(child, 0)[1] == 0


def _run_tests(path: Path, source: str, tests: tuple[str, ...], notes: Path) -> None:
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
    signal.alarm(10 * LIMIT_S)
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    sys.meta_path.insert(0, Replaced(name, path, source))
    order = ShortestFirst(json.loads(notes.read_text()) if notes.exists() else {})
    words = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not long", *tests]
    status = 1
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            with contextlib.redirect_stdout(io.StringIO()):
                status = int(pytest.main(words, plugins=[order]))
        if not notes.exists():
            notes.write_text(json.dumps(order.seconds))
    finally:
        os._exit(status)


def score(name: str, most: int, seed: int, folder: Path) -> tuple[int, int]:
    """Run a sample of a module's mutants and print the survivors; (killed, all)."""
    place, tests = MODULES[name]
    path, notes = ROOT / place, folder / f"{name}.json"
    source = path.read_text()
    if not passes(path, ast.unparse(ast.parse(source)), tests, notes):
        sys.exit(f"{name}: its tests fail without any change; mend that first")
    everything = mutants(source)
    chosen = random.Random(f"{seed}/{name}").sample(everything, min(most, len(everything)))
    started, survivors = time.monotonic(), []
    for mutant in chosen:
        if passes(path, mutant.source, tests, notes):
            survivors.append(mutant.what)
            print(f"  survived  {place} {mutant.what}", flush=True)
    killed = len(chosen) - len(survivors)
    share, seconds = 100 * killed / len(chosen), time.monotonic() - started
    words = f"{killed} of {len(chosen)} killed, {share:.0f} %"
    print(f"{name:10} {words} ({len(everything)} in all; {seconds:.0f} s)", flush=True)
    return killed, len(chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MODULES, default=list(MODULES))
    parser.add_argument("--mutants", type=int, default=40, help="at most this many of each module")
    parser.add_argument("--seed", type=int, default=SEED, help="another one draws another sample")
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    for heavy in ("torch", "onnx", "onnxruntime", "pydantic", "rich", "hypothesis", "safetensors.torch"):
        importlib.import_module(heavy)
    with tempfile.TemporaryDirectory() as folder:
        totals = [score(name, options.mutants, options.seed, Path(folder)) for name in options.only]
    killed, tried = (sum(column) for column in zip(*totals))
    print(f"{'all':10} {killed} of {tried} killed, {100 * killed / tried:.0f} %")


if __name__ == "__main__":
    main()
