"""`cluster/Dockerfile` and the versions with hashes that it installs. What asks the package index is marked heavy:

pytest -m heavy tests/cluster/test_dockerfile.py
"""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sweeps.process.installation import PACKAGES
from tests.cluster.kubernetes_schemas import ROOT

DOCKERFILE, LOCK = ROOT / "cluster" / "Dockerfile", ROOT / "cluster" / "requirements.txt"
PINNED = re.compile(r"^([\w.-]+)==(\S+)", re.M)


def tool(name: str) -> str:
    """A program of the test environment."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not found:
        pytest.skip(f"{name} is not installed: make dev")
    return found


def pins(file: Path) -> dict[str, str]:
    return {canonicalize_name(name): version for name, version in PINNED.findall(file.read_text())}


def instructions() -> list[tuple[str, str]]:
    lines = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.M).replace("\\\n", " ").splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def hadolint(text: str) -> "subprocess.CompletedProcess[str]":
    command = [tool("hadolint"), "--no-color", "--failure-threshold", "style", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def test_hadolint_finds_nothing_and_would_find_a_mistake() -> None:
    text = DOCKERFILE.read_text()
    assert "hadolint ignore" not in text
    clean = hadolint(text)
    assert (clean.returncode, clean.stdout) == (0, "")
    assert "DL3007" in hadolint(re.sub(r"uv:[\d.]+", "uv:latest", text)).stdout
    assert "DL3002" in hadolint(re.sub(r"USER .*", "USER root", text)).stdout


def test_it_runs_as_a_user_without_rights() -> None:
    (user,) = (rest for word, rest in instructions() if word == "USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user), "a number, which Kubernetes can check"


def test_what_is_installed_is_what_is_tested_and_has_hashes() -> None:
    image, here = pins(LOCK), pins(ROOT / "constraints.txt")
    assert {name: version for name, version in image.items() if here.get(name, version) != version} == {}
    others = [name for name in image.keys() - here.keys() if not re.match("(nvidia|cuda)-", name)]
    assert sorted(others) == ["setuptools"], "what the CPU build does not bring"
    blocks = re.split(r"^(?=[\w.-]+==)", LOCK.read_text(), flags=re.M)[1:]
    assert len(blocks) == len(image)
    assert [block.split()[0] for block in blocks if not re.search(r"--hash=sha256:[0-9a-f]{64}", block)] == []


def test_everything_that_a_command_needs_is_installed_and_rays_job_server_too() -> None:
    wanted = [Requirement(it) for it in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]]
    (ray,) = (it for it in wanted if it.name == "ray")
    assert "default" in ray.extras
    more = [Requirement(it) for it in metadata.requires("ray") or []]
    wanted += [it for it in more if it.marker and it.marker.evaluate({"extra": "default"})]
    image = pins(LOCK)
    assert [str(it) for it in wanted if not it.specifier.contains(image.get(canonicalize_name(it.name), "0"))] == []


def test_the_tools_are_of_this_projects_versions() -> None:
    text, here = DOCKERFILE.read_text(), pins(ROOT / "constraints.txt")
    assert f"astral-sh/uv:{here['uv']} " in text
    cuda = re.findall(r"^FROM nvidia/cuda:(\d+\.\d+)", text, re.M)
    runtime = pins(LOCK)["nvidia-cuda-runtime"]
    assert cuda == [runtime.rpartition(".")[0]] * 2, "the base is of torch's CUDA"


def context(folder: Path) -> Path:
    """What is sent to the builder, by `.dockerignore`."""
    rules = [it for it in (ROOT / ".dockerignore").read_text().splitlines() if not it.startswith("#")]
    assert rules[0] == "*"
    kept = [it[1:] for it in rules if it.startswith("!")]
    for name in kept:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def copied() -> list[str]:
    lines = [line.split() for word, line in instructions() if word == "COPY" and "--from" not in line]
    return [source for *sources, _ in lines for source in sources]


def test_what_is_copied_is_sent_and_nothing_else(tmp_path: Path) -> None:
    sources, sent = copied(), context(tmp_path)
    assert set(PACKAGES) <= set(sources)
    for source in sources:
        assert (sent / source).exists(), source
    files = [str(it.relative_to(sent)) for it in sent.rglob("*") if it.is_file()]
    assert [it for it in files if not any(it == source or it.startswith(f"{source}/") for source in sources)] == []
    assert not fnmatch.filter(files, "*.pyc")


def run_line(words: str) -> str:
    return next(rest for word, rest in instructions() if word == "RUN" and words in rest)


def uv(*words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "SSL_CERT_FILE": os.environ.get("SSL_CERT_FILE", os.environ.get("PIP_CERT", ""))}
    environment = {name: value for name, value in environment.items() if value or name != "SSL_CERT_FILE"}
    return subprocess.run([tool("uv"), *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


PLATFORM = ("--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_28")


@pytest.mark.heavy
def test_the_images_install_command_finds_every_version_with_its_hash(tmp_path: Path) -> None:
    command = shlex.split(run_line("--require-hashes"))[1:]
    where = ("--dry-run", "--python", sys.executable, *PLATFORM, "--target", str(tmp_path / "site"))
    done = uv(*command, *where, cwd=context(tmp_path / "context"))
    assert done.returncode == 0, done.stderr
    found = {canonicalize_name(it) for it in re.findall(r"^ \+ ([\w.-]+)==", done.stderr, re.M)}
    assert found == pins(LOCK).keys()


@pytest.mark.heavy
def test_the_list_is_what_its_command_makes(tmp_path: Path) -> None:
    shown = subprocess.run(
        ["make", "--dry-run", "cluster/requirements.txt"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.replace("\\\n", " ")
    (line,) = (it for it in shown.splitlines() if "uv pip compile" in it)
    for name in ("pyproject.toml", "constraints.txt", "cluster/requirements.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    done = uv(*shlex.split(line)[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cluster" / "requirements.txt").read_text() == LOCK.read_text()


@pytest.mark.heavy
def test_the_package_is_built_from_what_is_sent(tmp_path: Path) -> None:
    sent, site = context(tmp_path / "context"), tmp_path / "site"
    command = shlex.split(run_line("--no-deps"))[1:]
    done = uv(*command, "--python", sys.executable, "--target", str(site), cwd=sent)
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "sweeps.cli", "doctor"]
    doctor = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert str(site) in doctor.stdout.replace("\n", "").replace(" ", "")
