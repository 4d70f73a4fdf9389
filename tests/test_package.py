"""The wheel: it holds the whole tree, runs where nothing but it is installed, and asks for what its modules import."""

import ast
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("analysis", "conf", "sweeps", "trainer")
NOT_IMPORTED = {
    "accelerate",  # PEFT and quantised weights
    "gguf",  # transformers reads GGUF files with it
    "sentencepiece",  # transformers reads tokenizers with it that come as a .model file
}

WITH_TORCH = {"triton"}  # comes with the CUDA build of torch; what imports it does without where it is not there

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def tree() -> set[str]:
    """What a user needs of the checkout: every file of our packages, except what is written for readers of the code."""
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()]
    return {
        path.relative_to(ROOT).as_posix()
        for path in files
        if "__pycache__" not in path.parts and path.suffix not in (".md", ".pyc")
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made of a copy of the checkout, tests included, without any network."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # Without isolation: pip would fetch setuptools, which torch has brought along.
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(work)]
    call = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = work.glob("lorasweep-*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a program of a new environment, in an empty folder: the wheel is in it, and the libraries of this one.

    This environment's site-packages are named in a ``.pth`` file. So the wheel stands before them, and their own
    ``.pth`` files, such as that of an editable install, are not read.
    """
    place = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place / "venv")], check=True)
    scheme = {"base": str(place / "venv"), "platbase": str(place / "venv")}
    packages = Path(sysconfig.get_path("purelib", "venv", scheme))
    here = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    (packages / "libraries.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(here)))
    python = place / "venv" / "bin" / "python"
    options = ["--no-deps", "--no-index", "--quiet", "--ignore-installed"]
    call = [sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(wheel)]
    subprocess.run(call, check=True)
    (place / "empty").mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(python.with_name(program)), *arguments],
            cwd=place / "empty",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    code = f"import json, {', '.join(PACKAGES)}; print(json.dumps([p.__file__ for p in ({', '.join(PACKAGES)})]))"
    done = run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    for file in json.loads(done.stdout):
        assert Path(file).is_relative_to(packages), f"{file} is not of the wheel"
    return run


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert len(tree()) > 250
    assert sorted(tree() - names) == []
    assert sorted(names - tree()) == []


def test_an_installed_command_answers(installed: Run) -> None:
    done = installed("lorasweep", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "lorasweep run experiment=quickstart" in done.stdout


def test_an_installed_command_composes_its_configuration(installed: Run) -> None:
    done = installed("lorasweep", "run", "experiment=quickstart", "lora.dropout=0.07", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["lora"]["dropout"] == 0.07


def test_an_installed_command_loads_a_model_and_trains_it(
    installed: Run, tiny_models: dict[str, Path], tiny_data: tuple[Path, Path]
) -> None:
    train, validation = tiny_data
    data = ["data=csv", f"data.train={train}", f"data.validation={validation}", "data.text=text", "data.label=label"]
    model = ["model=local", f"model.path={tiny_models['bert']}", "precision=fp32", "bias=none", "train.max_steps=4"]
    done = installed("lorasweep", "check", "task=classification", *model, *data, "sweep.name=x", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["ok"] is True
    assert told["estimate"]["seconds"] > 0


def imported() -> dict[str, set[str]]:
    """Distribution that a module of ours imports, wherever in it → those modules."""
    providers = importlib.metadata.packages_distributions()
    users = defaultdict(set)
    for file in (path for name in PACKAGES for path in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - set(PACKAGES):
                for distribution in providers.get(top, [top]):
                    users[canonicalize_name(distribution)].add(file.relative_to(ROOT).as_posix())
    return users


def test_what_is_imported_is_asked_for_and_what_is_asked_for_is_needed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {canonicalize_name(Requirement(line).name) for line in requirements}

    needed = names(project["dependencies"])
    extras = {name: names(lines) for name, lines in project["optional-dependencies"].items() if name != "dev"}
    users = imported()
    asked = needed.union(WITH_TORCH, *extras.values())
    undeclared = {name: sorted(files) for name, files in users.items() if name not in asked}
    assert undeclared == {}, "for `lorasweep` to run in a user's environment these must be in [project] dependencies"
    assert needed - set(users) == NOT_IMPORTED
    assert set(users) >= WITH_TORCH


def test_everything_that_an_environment_can_hold_has_its_version_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(Requirement(line).name) for line in lines if line and not line.startswith("#")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    names = {canonicalize_name(Requirement(line).name) for line in asked} - {"lorasweep"}
    assert sorted(names - pinned) == []
