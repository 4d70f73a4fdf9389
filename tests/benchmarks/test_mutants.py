"""The mutation tester itself: which mistakes it makes, and that it tells a test that notices from one that does not."""

import ast
import subprocess
from pathlib import Path

import pytest

from tests.benchmarks import mutants

SOURCE = '''
"""Words."""

from dataclasses import dataclass


@dataclass
class Point:
    x: int = 1


def of(values: list[int], most: int = 3) -> int:
    total = 0
    for value in values:
        if value < most and not value == 2:
            total += value
    print("left out")
    return total
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "toy.py").write_text(SOURCE)
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    return "analysis/toy.py"


def changes(module: str) -> dict[str, str]:
    """What a mistake is → the line of the module that it changes."""
    plain = ast.unparse(ast.parse(SOURCE)).splitlines()
    found = {}
    for it in mutants.mutants(module):
        lines = ast.unparse(mutants.mutated(it)).splitlines()
        (found[it.what],) = [new.strip() for old, new in zip(plain, lines, strict=True) if old != new]
    return found


def test_each_mistake_changes_one_line_and_declarations_stay_as_they_are(module: str) -> None:
    assert changes(module) == {
        "3 → 4": "def of(values: list[int], most: int=4) -> int:",
        "0 → 1": "total = 1",
        "condition negated": "if not (value < most and (not value == 2)):",
        "And → Or": "if value < most or not value == 2:",
        "Lt → LtE": "if value <= most and (not value == 2):",
        "Not left out": "if value < most and value == 2:",
        "Eq → NotEq": "if value < most and (not value != 2):",
        "2 → 3": "if value < most and (not value == 3):",
        "Add → Sub": "total -= value",
        "call left out": "pass",
        "returns None": "return None",
    }


def test_a_sample_is_the_same_for_the_same_seed_and_keeps_to_lines(module: str) -> None:
    some = mutants.sample_of(module, None, 4, 0)
    assert some == mutants.sample_of(module, None, 4, 0)
    assert len(some) == 4
    assert any(some != mutants.sample_of(module, None, 4, seed) for seed in (1, 2, 3))
    line = SOURCE.splitlines().index("            total += value") + 1
    assert [it.what for it in mutants.sample_of(module, {line}, 9, 0)] == ["Add → Sub"]


def test_changed_lines_are_those_of_the_modules_since_a_commit(module: str, tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "x"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    (tmp_path / "analysis" / "toy.py").write_text(SOURCE.replace("total = 0", "total = 5\n    total -= 5"))
    line = SOURCE.splitlines().index("    total = 0") + 1
    for name in ("sweeps", "trainer"):
        (tmp_path / name).mkdir()
    assert mutants.changed_lines("HEAD") == {"analysis/toy.py": {line, line + 1}}


@pytest.fixture
def toy_tests(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file for tests of the module, which they import as ``toy``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = heavy\n")
    (tmp_path / module).write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path / "analysis"))
    return tmp_path / "test_toy.py"


def test_a_mutant_is_seen_in_a_fork_alone(module: str, toy_tests: Path) -> None:
    toy_tests.write_text("import toy\n\n\ndef test_sum():\n    assert toy.of([1, 2]) == 1\n")

    def outcome(tree: ast.Module | None) -> tuple[bool, bool]:
        told = mutants.in_a_fork([str(toy_tests)], tree, module, 300, "-x")
        return bool(told["seconds"]), bool(told["failed"])

    by_what = {it.what: it for it in mutants.mutants(module)}
    assert outcome(None) == (True, False)
    assert outcome(mutants.mutated(by_what["Add → Sub"])) == (True, True)
    assert outcome(mutants.mutated(by_what["Lt → LtE"])) == (True, False), "nothing tests the border"


def test_only_tests_that_run_its_line_are_tried_on_a_mutant(module: str, toy_tests: Path) -> None:
    toy_tests.write_text(
        "import pytest, toy\n\n\n@pytest.fixture(scope='module')\ndef three():\n    return toy.of([3])\n\n\n"
        "def test_none():\n    toy.of([])\n\n\ndef test_some():\n    toy.of([1])\n\n\n"
        "def test_three(three):\n    pass\n"
    )
    told = mutants.in_a_fork([str(toy_tests)], None, module, 300)
    tests = sorted(told["seconds"])
    none, some, three = tests
    reached = {it.what: mutants.reaching(it, tests, told["lines"]) for it in mutants.mutants(module)}
    assert reached["Add → Sub"] == [some]
    assert reached["0 → 1"] == [none, some, three], "a fixture's lines are those of all tests of its file"
    assert reached["3 → 4"] == tests, "ran as the module was imported"
    assert mutants.reaching(mutants.mutants(module)[0], tests, {}) == tests
