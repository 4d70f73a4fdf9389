"""Do the tests notice a wrong line: some small mistakes in a module, each tried against the module's quick tests.

    make mutants                                             # the modules below, 25 mistakes each, drawn by a seed
    make mutants BENCH="analysis/statistics/paired.py --sample 60"
    make mutants BENCH="--changed main"                      # only lines that changed since main, in any module

A mistake ("mutant") is one changed operator, number, condition or result. It is made in memory, in a process forked
from one that has imported the libraries: no file changes, and a mutant costs alone the tests that reach its line, the
shortest first. Processes that tests start do not see it. It is killed where a test fails, or takes ten times as long as
without it. Not mutated are strings, annotations, decorators and fields of classes.

Why not mutmut or Cosmic Ray: both write the mutants into a copy of the tree and run it in a fresh interpreter or import
all of it anew, where the libraries alone take ten seconds; and neither draws a sample.
"""

import argparse
import ast
import collections
import contextlib
import copy
import importlib
import importlib.machinery
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("analysis", "sweeps", "trainer")
_ROOMS = {
    "analysis/statistics": "comparison estimators intervals items paired pareto power ranked selection",
    "analysis/leaderboard": "claims ranking seeds verdict",
    "sweeps/search": "lineage pbt scheduler searcher study_log",
    "sweeps/store": "reconcile",
    "trainer/engines": "pack pack_layers slot tensors/flat_adamw",
}
MODULES = tuple(f"{room}/{name}.py" for room, names in _ROOMS.items() for name in names.split())
_PACKS = [f"tests/trainer/engines/test_{it}.py" for it in ("pack", "pack_equivalence", "pack_lengths")]
_LAYERS = [f"tests/trainer/engines/test_{it}.py" for it in ("architectures", "shared_inputs", "pack_stack")]
# Tests of a folder that mirrors a module's are found by themselves; these see it too.
MORE_TESTS = {
    "analysis/leaderboard": ["tests/analysis/test_constraints.py"],
    "sweeps/search/lineage.py": ["tests/sweeps/store/test_reconcile.py"],
    "sweeps/search/searcher.py": ["tests/sweeps/store/test_reconcile.py"],
    "sweeps/search/study_log.py": ["tests/sweeps/store/test_reconcile.py"],
    "trainer/engines/tensors": ["tests/trainer/engines/triton_kernels/test_adamw.py", *_PACKS],
    "trainer/engines/pack_layers.py": [*_PACKS, *_LAYERS],
}
LIBRARIES = {  # imported once, before any fork: what the tests of a package take longest to import
    "analysis": ["torch", "pandas", "pyarrow.parquet", "scipy.stats", "sklearn.metrics"],
    "sweeps": ["torch", "pandas", "optuna", "ray.tune", "hydra"],
    "trainer": ["torch", "transformers", "peft", "datasets", "pandas", "scipy.stats", "sklearn.metrics"],
}
PATIENCE = 10.0  # times as long as without a mutant
_COMPARE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_BINARY = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.MatMult: ast.Mult,
}  # fmt: skip
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """One mistake: which node of the module's tree, in the order of a walk, and which of its mistakes."""

    module: str
    node: int
    variant: int
    line: int
    what: str


@dataclass(frozen=True)
class Tried:
    """A mutant and what became of it: ``killed``, ``slow`` (which counts as killed) or ``survived``."""

    mutant: Mutant
    outcome: str
    by: str = ""


def mistakes(node: ast.AST) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """What can be made wrong at a node: words for it, and a function from the node to what stands in its place."""
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            other = _COMPARE[type(operator)]
            yield f"{type(operator).__name__} → {other.__name__}", lambda it, i=i, o=other: _set(it, "ops", i, o())
    elif isinstance(node, ast.BinOp | ast.AugAssign) and (other := _BINARY.get(type(node.op))):
        yield f"{type(node.op).__name__} → {other.__name__}", lambda it, o=other: _with(it, op=o())
    elif isinstance(node, ast.BoolOp):
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"{type(node.op).__name__} → {other.__name__}", lambda it: _with(it, op=other())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield f"{type(node.op).__name__} left out", lambda it: it.operand
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        negated = lambda it: _with(it, test=ast.UnaryOp(ast.Not(), it.test))  # noqa: E731
        yield "condition negated", negated
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"{node.value} → {not node.value}", lambda it: ast.Constant(not it.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield f"{node.value} → {node.value + 1}", lambda it: ast.Constant(it.value + 1)
    elif isinstance(node, ast.Return) and not _is_nothing(node.value):
        yield "returns None", lambda it: _with(it, value=ast.Constant(None))
    elif isinstance(node, ast.Continue | ast.Break):
        other = ast.Break if isinstance(node, ast.Continue) else ast.Continue
        yield f"{type(node).__name__} → {other.__name__}", lambda it: other()
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS:
        name = _CALLS[node.func.id]
        yield f"{node.func.id} → {name}", lambda it: _with(it, func=ast.Name(name, ast.Load()))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "call left out", lambda it: ast.Pass()


def _is_nothing(value: ast.expr | None) -> bool:
    return value is None or (isinstance(value, ast.Constant) and value.value is None)


def _with(node: Any, **fields: Any) -> Any:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _set(node: Any, name: str, place: int, value: Any) -> Any:
    items = list(getattr(node, name))
    items[place] = value
    return _with(node, **{name: items})


def walk(tree: ast.Module) -> list[ast.AST]:
    """The nodes where a mistake is one of what the code does, in the order of the text."""
    found: list[ast.AST] = []

    def visit(node: ast.AST) -> None:
        found.append(node)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params") or isinstance(node, ast.JoinedStr):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not _outside(node, child):
                    visit(child)

    visit(tree)
    return found


def _outside(parent: ast.AST, child: ast.AST) -> bool:
    """A declaration: a field of a class, what is imported for types alone, the value of an annotation by name."""
    if isinstance(parent, ast.ClassDef):
        return not isinstance(child, ast.FunctionDef)
    return isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"


def mutants(module: str, lines: set[int] | None = None) -> list[Mutant]:
    """All mistakes of a module, or those of some of its lines."""
    tree = ast.parse((ROOT / module).read_text())
    return [
        Mutant(module, i, variant, node.lineno, what)
        for i, node in enumerate(walk(tree))
        if hasattr(node, "lineno") and (lines is None or node.lineno in lines)
        for variant, (what, _) in enumerate(mistakes(node))
    ]


def mutated(mutant: Mutant) -> ast.Module:
    """The module's tree with the mistake in it."""
    tree = ast.parse((ROOT / mutant.module).read_text())
    old = walk(tree)[mutant.node]
    new = list(mistakes(old))[mutant.variant][1](old)

    class Put(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            return ast.copy_location(new, node) if node is old else self.generic_visit(node)

    return ast.fix_missing_locations(Put().visit(tree))


def tests_of(module: str) -> list[str]:
    """Tests of the folder that mirrors the module's which name it, those of its own name first, and ``MORE_TESTS``."""
    path = Path(module)
    own = ROOT / "tests" / path.parent / f"test_{path.name}"
    named = re.compile(rf"\b{re.escape('.'.join(path.with_suffix('').parts))}\b|\b{path.stem}\b")
    near = sorted(it for it in own.parent.glob("test_*.py") if named.search(it.read_text()))
    more = [it for place, some in MORE_TESTS.items() if module.startswith(place) for it in some]
    found = [it for it in [own, *near] if it.exists()]
    return list(dict.fromkeys([str(it.relative_to(ROOT)) for it in found] + more))


class Seen:
    """A pytest plugin: what passed and how long it took, and what failed first."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        elif not report.skipped:
            self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid or "collection")


class Reached:
    """A pytest plugin: the lines of a module that a test ran in this process.

    Attributes:
        lines: test, or file for what ran in fixtures, or "" for what ran before any test → numbers.
    """

    def __init__(self, module: str) -> None:
        self.lines: dict[str, set[int]] = collections.defaultdict(set)
        self._path, self._now = str(ROOT / module), ""
        threading.settrace(self._called)
        sys.settrace(self._called)

    def _called(self, frame: Any, _event: str, _value: Any) -> Any:
        return self._passed if frame.f_code.co_filename == self._path else None

    def _passed(self, frame: Any, _event: str, _value: Any) -> Any:
        self.lines[self._now].add(frame.f_lineno)
        return self._passed

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._now = nodeid.split("::")[0]

    def pytest_runtest_call(self, item: Any) -> None:
        self._now = item.nodeid

    def pytest_runtest_teardown(self, item: Any) -> None:
        self._now = item.nodeid.split("::")[0]


def in_a_fork(tests: list[str], tree: ast.Module | None, module: str, seconds: float, *more: str) -> dict[str, Any]:
    """Run tests in a fork of this process, which has imported nothing of ours yet; ``more`` are options of pytest.

    Returns:
        ``seconds`` by test, ``failed``, and ``lines`` where ``tree`` is None (see ``Reached``); or nothing, where it
        took longer than ``seconds``.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.close(reader)
        try:
            os.write(writer, json.dumps(_run_here(tests, tree, module, *more)).encode())
        except BaseException as error:
            os.write(writer, json.dumps({"seconds": {}, "failed": [repr(error)]}).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)
    os.set_blocking(reader, False)
    told, until = b"", time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(BlockingIOError):
            told += os.read(reader, 1 << 20)
        if os.waitpid(child, os.WNOHANG)[0]:
            with contextlib.suppress(BlockingIOError):
                while part := os.read(reader, 1 << 20):
                    told += part
            break
        time.sleep(0.05)
    else:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    os.close(reader)
    with contextlib.suppress(ProcessLookupError):  # what the tests left behind
        os.killpg(child, signal.SIGKILL)
    answer: dict[str, Any] = json.loads(told) if told else {}
    return answer


def _run_here(tests: list[str], tree: ast.Module | None, module: str, *more: str) -> dict[str, Any]:
    import pytest

    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    sys.stdout = sys.stderr = io.StringIO()
    if tree is not None:
        code = compile(tree, str(ROOT / module), "exec")
        ordinary = importlib.machinery.SourceFileLoader.get_code

        def get_code(self: Any, name: str) -> Any:
            return code if Path(self.path) == ROOT / module else ordinary(self, name)

        importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
    seen, reached = Seen(), Reached(module) if tree is None else None
    plugins = [seen, reached] if reached else [seen]
    pytest.main([*tests, "-q", "-p", "no:cacheprovider", "-m", "not heavy", *more], plugins=plugins)
    lines = {name: sorted(found) for name, found in reached.lines.items()} if reached else {}
    return {"seconds": seen.seconds, "failed": seen.failed, "lines": lines}


def reaching(mutant: Mutant, tests: list[str], lines: Mapping[str, Sequence[int]]) -> list[str]:
    """Those of some tests that run a mutant's lines; all of them where none is known to."""
    node: Any = walk(ast.parse((ROOT / mutant.module).read_text()))[mutant.node]
    end = node.test.end_lineno if isinstance(node, ast.If | ast.While) else node.end_lineno
    own = set(range(node.lineno, end + 1))
    if not own.isdisjoint(lines.get("", ())):
        return tests
    places = ((it, (it, it.split("::")[0])) for it in tests)
    return [it for it, of in places if any(not own.isdisjoint(lines.get(name, ())) for name in of)] or tests


def sample_of(module: str, lines: set[int] | None, size: int, seed: int) -> list[Mutant]:
    """Some of a module's mutants, the same ones for the same seed and text."""
    found = mutants(module, lines)
    chosen = random.Random(f"{seed} {module}").sample(found, min(size, len(found)))
    return sorted(chosen, key=lambda it: (it.line, it.node))


def try_module(module: str, chosen: list[Mutant], slow: float, until: float) -> tuple[list[Tried], str]:
    """Try mutants of a module; what became of each, and a sentence on the tests."""
    tests = tests_of(module)
    begun = time.monotonic()
    if not tests or not chosen:
        return [], "no tests" if chosen else "no line to change"
    plain = in_a_fork(tests, None, module, 3600, f"--timeout={slow}")  # then a test has failed, and is left out
    failing = {it.split("::")[0] for it in plain.get("failed", [])}
    seconds = plain["seconds"]
    quick = [it for it in sorted(seconds, key=seconds.get) if seconds[it] <= slow and it not in plain["failed"]]
    if not quick:
        return [], f"no quick test passes ({', '.join(sorted(failing))})"
    whole = time.monotonic() - begun  # with imports and fixtures, and as busy as the machine is
    tried = []
    for mutant in chosen:
        if time.monotonic() > until:
            break
        reach = reaching(mutant, quick, plain["lines"])
        limits = 30 + PATIENCE * whole, "-x", f"--timeout={PATIENCE * slow}"
        told = in_a_fork(reach, mutated(mutant), module, *limits)
        failed = told.get("failed", [])
        outcome = "slow" if not told else "killed" if failed else "survived"
        tried.append(Tried(mutant, outcome, failed[0] if failed else ""))
        print(f"  {outcome:8} {module}:{mutant.line} {mutant.what}", flush=True)
    left_out = len({*seconds, *plain["failed"]} - set(quick))
    return tried, f"{len(quick)} tests in {whole:.0f} s" + (f", {left_out} left out as slow" if left_out else "")


def changed_lines(base: str) -> dict[str, set[int]]:
    """Module → its lines that are new or changed since a commit, uncommitted ones included."""
    command = ["git", "diff", "--unified=0", "--no-color", base, "--", *(f"{it}/" for it in PACKAGES)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines: dict[str, set[int]] = {}
    file = ""
    for line in told.splitlines():
        if line.startswith("+++ "):
            file = line.removeprefix("+++ ").removeprefix("b/")
        elif (hunk := re.match(r"@@ -\S+ \+(\d+)(?:,(\d+))? @@", line)) and file.endswith(".py"):
            begin, count = int(hunk[1]), int(hunk[2] or 1)
            lines.setdefault(file, set()).update(range(begin, begin + count))
    return lines


def summary(all_tried: dict[str, list[Tried]], notes: dict[str, str]) -> str:
    """A table, module by module, and below it who survived."""
    rows = ["| module | mutants | killed | survived | share | tests |", "| --- | --- | --- | --- | --- | --- |"]
    survivors: list[Tried] = []
    counts = {}
    for module, tried in all_tried.items():
        lived = [it for it in tried if it.outcome == "survived"]
        survivors += lived
        counts[module] = (len(tried), len(tried) - len(lived))
        rows.append(_row(module, *counts[module], notes[module]))
    rows.append(_row("all", sum(n for n, _ in counts.values()), sum(k for _, k in counts.values()), ""))
    lines = [f"survived: {it.mutant.module}:{it.mutant.line} {it.mutant.what}" for it in survivors]
    return "\n".join([*rows, *lines])


def _row(name: str, n: int, killed: int, note: str) -> str:
    return f"| {name} | {n} | {killed} | {n - killed} | {f'{killed / n:.0%}' if n else '-'} | {note} |"


def main(arguments: list[str]) -> int:
    """Try mutants and print what became of them; 1 where fewer than ``--at-least`` were killed."""
    parser = argparse.ArgumentParser(prog="make mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("modules", nargs="*", help="files, such as analysis/statistics/paired.py")
    parser.add_argument("--sample", type=int, default=25, help="mutants of each module (25)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--changed", metavar="BASE", help="only lines that changed since this commit, in any module")
    parser.add_argument("--slow", type=float, default=5.0, help="seconds after which a test is left out (5)")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which no further mutant is tried (60)")
    parser.add_argument("--at-least", type=float, default=0.85, help="share that must be killed (0.85)")
    parser.add_argument("--to", type=Path, help="JSON of everything that was tried")
    options = parser.parse_args(arguments)

    lines: dict[str, set[int] | None] = dict(changed_lines(options.changed)) if options.changed else {}
    modules = options.modules or (sorted(lines) if options.changed else MODULES)
    unknown = [it for it in modules if not (ROOT / it).is_file()]
    if unknown:
        parser.error(f"{unknown[0]}: there is no such module here. Name files, such as {MODULES[0]}")
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TRITON_INTERPRET", "1")  # as in the tests, which would set it too late
    for name in dict.fromkeys(it for module in modules for it in LIBRARIES[module.split("/")[0]]):
        importlib.import_module(name)
    until = time.monotonic() + 60 * options.minutes
    all_tried, notes = {}, {}
    for module in modules:
        print(module, flush=True)
        chosen = sample_of(module, lines.get(module) if options.changed else None, options.sample, options.seed)
        all_tried[module], notes[module] = try_module(module, chosen, options.slow, until)
    print(summary(all_tried, notes))
    if options.to:
        options.to.write_text(json.dumps([asdict(it) for some in all_tried.values() for it in some], indent=1))
    tried = [it for some in all_tried.values() for it in some]
    killed = sum(it.outcome != "survived" for it in tried)
    return 1 if tried and killed < options.at_least * len(tried) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
