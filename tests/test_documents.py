"""The documents hold what they say: commands run, and files, anchors, keys and options that are named exist.

``bash`` and ``python`` blocks are run: those of README.md in order in an empty folder, those of other documents after
them. ``sh`` blocks are for what needs a GPU, an account or hours; their ``lorasweep`` lines are parsed and composed.
"""

import ast
import contextlib
import functools
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from sweeps.cli import COMMANDS
from sweeps.commands.parser import Parser
from sweeps.compose import conf_tree
from sweeps.compose.compose import RESUMABLE, compose
from sweeps.compose.foreign import JUDGE
from sweeps.config import SweepConfig, schema

ROOT = Path(__file__).parent.parent
GROUPS = conf_tree.groups()
PACKAGES = ("analysis", "cluster", "conf", "sweeps", "tests", "trainer")
HISTORY = "CHANGELOG.md"  # names what there was
SECONDS = 300  # for a block

pytestmark = pytest.mark.timeout(1500)


def documents() -> list[str]:
    """Every Markdown file of the project, as a path from its root."""
    found = []
    for folder, below, files in os.walk(ROOT):
        if "pyvenv.cfg" in files:
            below.clear()
            continue
        below[:] = [name for name in below if not name.startswith(".") and name not in ("build", "runs")]
        found += [str((Path(folder) / name).relative_to(ROOT)) for name in files if name.endswith(".md")]
    return sorted(found)


DOCUMENTS = documents()
CURRENT = [name for name in DOCUMENTS if name != HISTORY]


@dataclass(frozen=True)
class Document:
    """A Markdown file in parts.

    Attributes:
        prose: without its fenced blocks.
        blocks: language and content of each fenced block.
        spans: code in the prose.
    """

    prose: str
    blocks: list[tuple[str, str]]
    spans: list[str]

    @functools.cached_property
    def code(self) -> list[str]:
        return [*self.spans, *(text for _, text in self.blocks)]


@functools.cache
def read(name: str) -> Document:
    text = re.sub(r"<!--.*?-->", "", (ROOT / name).read_text(), flags=re.S)
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
    prose = fence.sub("", text)
    spans = [re.sub(r"\s+", " ", span).replace(r"\|", "|") for span in re.findall(r"`([^`]+)`", prose)]
    return Document(prose, fence.findall(text), spans)


def runnable(name: str) -> list[tuple[str, str]]:
    return [(language, text) for language, text in read(name).blocks if language in ("bash", "python")]


# What is run


def run_blocks(name: str, folder: Path) -> None:
    """In the order given. ``make`` targets are only resolved: the gate itself runs them."""
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for language, text in runnable(name):
        if language == "bash" and text.startswith("make "):
            for line in text.splitlines():
                resolve(line)
            continue
        shell = ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, f"{name}: {text}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, f"{name}: {text}\n{done.stderr}"


def resolve(line: str) -> None:
    """Raises where make knows no such target."""
    subprocess.run(
        ["make", "--dry-run", *shlex.split(line, comments=True)[1:]], cwd=ROOT, check=True, capture_output=True
    )


@pytest.fixture(scope="module")
def after_readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that was empty, after everything that the README tells a newcomer to type."""
    folder = tmp_path_factory.mktemp("newcomer")
    run_blocks("README.md", folder)
    return folder


def test_every_command_of_the_readme_works_in_the_order_given(after_readme: Path) -> None:
    commands = "".join(text for _, text in runnable("README.md"))
    for command in ("make sweep", "lorasweep run", "lorasweep rank", "lorasweep report", "lorasweep export"):
        assert command in commands
    assert (after_readme / "runs" / "tickets" / "leaderboard.csv").read_text().count("completed") >= 2
    assert (after_readme / "runs" / "tickets" / "report.html").stat().st_size > 100_000


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != "README.md" and runnable(name)])
def test_blocks_of_the_other_documents_work_after_the_readme(name: str, after_readme: Path) -> None:
    run_blocks(name, after_readme)


# What is parsed


def commands() -> list[tuple[str, str]]:
    """Document and command: every ``lorasweep`` line of a block that is not run."""
    found = {}
    for name in DOCUMENTS:
        for language, text in read(name).blocks:
            for line in text.replace("\\\n", " ").splitlines():
                if re.match(r"(\$ )?lorasweep ", line) and language not in ("bash", "python"):
                    found[line.removeprefix("$ ")] = name
    return [(name, line) for line, name in found.items()]


class Understood(Exception):
    """Instead of doing what a command says: its options."""


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Any]:
    """Reads a command line with the subcommand's own parser, and stops there."""
    own = Parser.read

    def stop(self: Parser, arguments: list[str]) -> None:
        raise Understood(own(self, arguments))

    def parse(line: str) -> Any:
        words = shlex.split(line.replace("$'", "'").replace(r"\n", "\n"), comments=True)
        with pytest.raises(Understood) as understood:
            importlib.import_module(f"sweeps.commands.{words[1]}").main(words[2:])
        return understood.value.args[0]

    monkeypatch.setattr(Parser, "read", stop)
    mine = tmp_path / "mine" / "experiment"
    mine.mkdir(parents=True)
    (mine / "my_sweep.yaml").write_text("# @package _global_\nsearch:\n  trials: 3\n")
    monkeypatch.chdir(tmp_path)
    return parse


@pytest.mark.parametrize(("name", "line"), commands())
def test_a_command_that_is_not_run_is_understood(name: str, line: str, parsed: Callable[[str], Any]) -> None:
    options, command = parsed(line), line.split()[1]
    settings = [word for word in shlex.split(line, comments=True)[2:] if "=" in word and not word.startswith("-")]
    keys = [setting.split("=", 1)[0] for setting in settings]
    if command in ("run", "check", "data", "trial"):
        assert compose(options.overrides, options.config_dir).config
    elif command in ("fetch", "cluster"):
        assert not settings or compose(settings).config
    else:
        assert set(keys) <= schema().keys()
        assert command != "resume" or all(key.startswith(RESUMABLE) or key in JUDGE for key in keys)


@functools.cache
def help_of(command: str) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        importlib.import_module(f"sweeps.commands.{command}").main(["--help"])
    return text.getvalue()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_named_in_passing_exist_with_their_options(name: str) -> None:
    for span in read(name).spans:
        words = span.split()
        if words[:1] == ["make"] and len(words) > 1:
            resolve(span)
        if words[:1] != ["lorasweep"] or len(words) == 1 or not words[1].islower():
            continue
        assert words[1] in COMMANDS, span
        for option in re.findall(r"--[a-z-]+", span):
            assert option in help_of(words[1]) or option in ("--help", "--debug"), span


# What is named


def anchors(name: str) -> set[str]:
    """Those that a forge makes of a document's headings."""
    heads = re.findall(r"^#+ +(.*)$", read(name).prose, re.M)
    plain = [re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head)).strip().lower() for head in heads]
    return {head.replace(" ", "-") for head in plain}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    prose = re.sub(r"`[^`]+`", "", read(name).prose)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / name).parent / path if path else ROOT / name
        assert there.exists(), f"{name}: {target}"
        if anchor:
            assert anchor in anchors(os.path.relpath(there.resolve(), ROOT)), f"{name}: {target}"


@pytest.mark.parametrize("name", CURRENT)
def test_files_that_are_named_exist(name: str) -> None:
    pattern = rf"(?<![\w/.])(?:{'|'.join(PACKAGES)})/[\w/.*]*"
    for code in read(name).code:
        for path in re.findall(pattern, code):
            if re.search(r"NAME|GROUP", path):
                continue  # stands for any
            path = path.rstrip(".")
            assert list(ROOT.glob(path)) if "*" in path else (ROOT / path).exists(), f"{name}: {path}"


def top_level(module: Path) -> set[str]:
    """Names that a module defines or imports."""
    names = set()
    for node in ast.parse(module.read_text()).body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Assign():
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return names


@pytest.mark.parametrize("name", CURRENT)
def test_modules_that_are_named_with_dots_exist(name: str) -> None:
    for code in read(name).code:
        for dotted in re.findall(r"(?<![\w/.])(?:analysis|sweeps|trainer)(?:\.\w+)+", code):
            parts = dotted.split(".")
            depth = max(
                n for n in range(1, len(parts) + 1) if (ROOT.joinpath(*parts[:n])).is_dir() or _module(parts[:n])
            )
            rest = parts[depth:]
            if rest:
                module = _module(parts[:depth]) or ROOT.joinpath(*parts[:depth]) / "__init__.py"
                assert rest[0] in top_level(module), f"{name}: {dotted}"


def _module(parts: list[str]) -> Path | None:
    path = ROOT.joinpath(*parts).with_suffix(".py")
    return path if path.is_file() else None


@pytest.mark.parametrize("name", CURRENT)
def test_options_that_are_chosen_exist(name: str) -> None:
    for code in read(name).code:
        for group, option in re.findall(rf"(?<![\w.+-])({'|'.join(GROUPS)})=([a-z]\w*)", code):
            assert option in GROUPS[group] or option == "my_sweep", f"{name}: {group}={option}"


KEYS = schema()
OPEN = (
    "space",
    "sampler",
    "scheduler",
    "objective.terms",
    "objective.constraints",
    "data.topics",
    "search.budget.target",
    "tracking.trackers",
)
TOP = {key.split(".")[0] for key in KEYS}


def known(path: str) -> bool:
    """Whether a dotted path is a key, a part of the config, or below a key that holds a mapping."""
    below = any(path == key or path.startswith(f"{key}.") for key in OPEN)
    return below or path in KEYS or any(key.startswith(f"{path}.") for key in KEYS)


@pytest.mark.parametrize("name", CURRENT)
def test_config_keys_that_are_named_exist(name: str) -> None:
    for span in read(name).spans:
        found = re.match(r"\+?((?:\w+\.)+\w+)(?:=.*|\.\*)?$", span)
        if not found or found[1].split(".")[0] not in TOP or found[1].startswith("bias."):
            continue  # bias.… are metrics too
        if found[1].endswith((".py", ".yaml", ".json", ".jsonl", ".md", ".csv")):
            continue
        assert known(found[1]), f"{name}: {span}"


# The manual's tables, and the README


def rows(name: str, heading: str) -> dict[str, list[str]]:
    """The rows of the tables below a heading of the second level, by their first cell, which is one code span."""
    _, _, below = read(name).prose.partition(f"\n## {heading}\n")
    assert below, f"{name}: no heading {heading!r}"
    section, _, _ = below.partition("\n## ")
    found = {}
    for line in section.splitlines():
        first, *others = (cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|")))
        if code := re.fullmatch(r"`([^`]+)`", first):
            found[code[1]] = others
    return found


CONF = "conf/README.md"


def test_the_manual_names_every_config_key_and_no_other() -> None:
    assert rows(CONF, "All keys").keys() == KEYS.keys()


def test_the_manual_s_defaults_are_those_of_a_sweep_without_overrides() -> None:
    composed, shown = asdict(compose([]).config), rows(CONF, "All keys")
    composed["sweep"] |= {"name": None, "dir": "runs"}  # what is found while composing
    composed["data"]["schema"] = SweepConfig().data.schema
    composed["search"]["start_from"] = SweepConfig().search.start_from
    composed["eval"] |= {"generate": "auto", "references": "auto"}
    for key in KEYS:
        value = functools.reduce(lambda part, word: part[word], key.split("."), composed)
        default = shown[key][0]
        if key in GROUPS or key in ("objective.terms", "tracking.trackers"):  # a group whose option is named
            assert re.search(r"option `(\w+)`", default)[1] in GROUPS[key.split(".")[0]]  # type: ignore[index]
        elif default.endswith("…`"):  # a long text, which the manual only begins
            assert value.startswith(default.strip("`").removesuffix("…")), key
        else:
            assert yaml.safe_load(default.strip("`")) == value, key


def test_the_manual_names_every_option_of_every_group() -> None:
    table = rows(CONF, "Groups and options")
    chosen = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text())["defaults"]
    defaults = {group: option for entry in chosen if isinstance(entry, dict) for group, option in entry.items()}
    assert table.keys() == GROUPS.keys()
    for group, options in GROUPS.items():
        assert set(re.findall(r"`(\w+)`", table[group][0])) == set(options), group
        if defaults[group]:
            assert f"**`{defaults[group]}`**" in table[group][0]


@pytest.mark.parametrize("group", ["space", "sampler", "scheduler", "objective", "tracking"])
def test_the_manual_explains_every_option_of_what_one_chooses(group: str) -> None:
    heading = {"tracking": "Trackers"}.get(group, f"{group.capitalize()}s")
    assert set(GROUPS[group]) <= rows(CONF, heading).keys()


def test_every_subcommand_is_in_the_manual() -> None:
    named = {key.split()[1] for key in rows("sweeps/README.md", "Commands")}
    assert named == COMMANDS.keys()


def test_every_metric_is_in_the_manual() -> None:
    from analysis.metrics import METRICS

    text = (ROOT / "trainer" / "README.md").read_text()
    beside = {  # a metric that stands beside another one, such as its upper bound → what its name adds
        other: other.removeprefix(f"{name}_")
        for name, row in METRICS.items()
        for other in (row.upper, row.floor, *row.fair)
        if other
    }
    for metric in METRICS:
        last = metric.rsplit(".", 1)[-1]
        by_suffix = f"`…_{beside[metric]}`" in text if metric in beside else last.endswith("stderr")
        assert metric in text or f"`.{last}`" in text or by_suffix, metric


@pytest.mark.parametrize("package", ["analysis", "sweeps", "trainer"])
def test_every_room_is_in_the_manual(package: str) -> None:
    rooms = {f"{path.parent.name}/" for path in (ROOT / package).glob("*/__init__.py")}
    assert rows(f"{package}/README.md", f"The rooms of {package}/").keys() == rooms


def test_the_rooms_of_the_architecture_are_those_of_the_import_contracts() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {it["containers"][0]: it["layers"] for it in contracts if "containers" in it}
    lines = re.split(r"\n\| sweeps \| trainer \| analysis \|\n", read("ARCHITECTURE.md").prose)[1].split("\n\n")[0]
    cells = [[re.findall(r"`(\w+)`", cell) for cell in line.split("|")[1:-1]] for line in lines.splitlines()[1:]]
    for package, column in zip(("sweeps", "trainer", "analysis"), zip(*cells, strict=True), strict=True):
        assert [rooms for rooms in column if rooms] == [layer.split(" | ") for layer in layers[package]]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 170


def main_path() -> list[str]:
    return re.findall(r"^\d\. \[([\w/]+\.py)\]", (ROOT / "README.md").read_text(), re.M)


def test_the_main_path_is_short() -> None:
    assert 3 < len(main_path()) <= 6


@pytest.mark.parametrize(("file", "following"), zip(main_path(), main_path()[1:], strict=False))
def test_each_file_of_the_main_path_names_the_next_at_its_top(file: str, following: str) -> None:
    assert following in (ast.get_docstring(ast.parse((ROOT / file).read_text())) or "")


def test_the_picture_of_the_report_is_small() -> None:
    assert (ROOT / "docs" / "report.png").stat().st_size < 150_000
