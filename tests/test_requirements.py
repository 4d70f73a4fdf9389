"""`requirements/`: every package that is installed has hashes, in the versions of constraints.txt; and the audit."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LISTS = ROOT / "requirements"
INSTALLED = ["build", "run", "torch-cpu", "torch-cuda", "mlflow", "wandb-report", "dev", "audit"]


def blocks(name: str) -> dict[str, str]:
    """Package → its block of a list: the version, and the hashes of its files."""
    text = re.sub(r"^#.*\n", "", (LISTS / f"{name}.txt").read_text(), flags=re.M)
    found = [block for block in re.split(r"^(?=\S)", text, flags=re.M) if block.strip()]
    return {canonicalize_name(Requirement(block.split("\\")[0]).name): block for block in found}


def version(block: str) -> str:
    return re.split(r"[\s;\\]", block.partition("==")[2], maxsplit=1)[0]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {
        canonicalize_name(it.partition("==")[0]): it.partition("==")[2] for it in lines if it and not it.startswith("#")
    }


@pytest.mark.parametrize("name", INSTALLED)
def test_every_package_of_a_list_is_pinned_and_has_hashes(name: str) -> None:
    found = blocks(name)
    assert found
    for block in found.values():
        assert re.fullmatch(r"[\w.-]+==\S+( ; [^\\]+)? \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+", block), block


def test_the_lists_have_the_versions_of_constraints_txt_and_miss_none_of_them() -> None:
    here, known = {}, pins()
    for name in set(INSTALLED) - {"audit"}:
        for package, block in blocks(name).items():
            here[package] = version(block)
            assert known.get(package, here[package]).partition("+")[0] == here[package].partition("+")[0], (
                name,
                package,
            )
    of_torch = {name for name in here.keys() - known.keys() if not re.match("(nvidia|cuda)-", name)}
    assert of_torch == {"setuptools", "httpx2-jsfetch"}, "what torch and other systems add"
    asked = {canonicalize_name(Requirement(it).name) for it in _asked()} - {"lorasweep"}
    assert sorted(asked - here.keys()) == []


def _asked() -> list[str]:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *(it for some in project["optional-dependencies"].values() for it in some)]


def test_torchs_cpu_build_has_the_hash_of_each_python_and_processor() -> None:
    (block,) = blocks("torch-cpu").values()
    assert version(block) == f"{pins()['torch']}+cpu"
    assert len(set(re.findall(r"sha256:(\w+)", block))) == 6


def test_whatever_make_installs_is_checked_by_hash() -> None:
    shown = [it for it in (ROOT / "Makefile").read_text().replace("\\\n", " ").splitlines() if " install " in it]
    calls = [call for line in shown for call in re.findall(r"(?:\$\(PIP\)|-m pip)[^;|)]* install [^;|&]*", line)]
    assert len(calls) >= 8
    unchecked = [it for it in calls if "$(HASHED)" not in it]
    assert len(unchecked) == 1, unchecked
    assert "--no-deps --no-build-isolation --editable ." in unchecked[0]
    assert "HASHED := --quiet --require-hashes --no-deps --no-build-isolation" in (ROOT / "Makefile").read_text()


def test_an_installation_stops_at_a_file_that_is_another_one(tmp_path: Path) -> None:
    """With make itself, a package of our own in the place of all others, and pip without an index."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    lists, wheels = tmp_path / "requirements", tmp_path / "wheels"
    shutil.copytree(LISTS, lists)
    wheels.mkdir()
    made = _wheel(tmp_path / "source", wheels)
    block = "toy==1.0 \\\n    --hash=sha256:{}\n"
    (lists / "build.txt").write_text(block.format("0" * 64))
    command = ["make", "install", f"PYTHON={sys.executable}"]
    environment = {"PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert made in done.stderr
    assert not list((tmp_path / ".venv").glob("installed-*"))


def _wheel(source: Path, to: Path) -> str:
    """A wheel of a package without content; its SHA-256."""
    import hashlib
    import zipfile

    file = to / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        archive.writestr("toy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("toy-1.0.dist-info/RECORD", "")
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lorasweep_audit", LISTS / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def told(*entries: dict[str, object]) -> str:
    return json.dumps({"dependencies": list(entries)})


def test_a_package_that_was_skipped_was_not_asked_about(audit: ModuleType) -> None:
    printed = told(
        {"name": "torch", "version": "2.13.0", "vulns": []}, {"name": "ray", "skip_reason": "not found on PyPI"}
    )
    assert audit.answers(printed, ["torch", "ray", "numpy"]) == ([], ["numpy", "ray"])
    assert audit.answers("", ["torch"]) == ([], ["torch"]), "it could not connect"


def test_a_vulnerability_is_let_pass_by_any_of_its_names_and_only_with_a_reason(audit: ModuleType) -> None:
    found = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.14"], "description": "bad\nworse"}
    known, unasked = audit.answers(told({"name": "torch", "version": "2.13.0", "vulns": [found]}), ["torch"])
    assert unasked == []
    (it,) = known
    assert (it.package, it.ids, it.fixed_in, it.summary) == ("torch", ("PYSEC-1", "CVE-1"), ("2.14",), "bad")
    assert audit.sorted_out(known, {}) == ([it], [])
    assert audit.sorted_out(known, {"CVE-1": "not called"}) == ([], [(it, "not called")])
    assert audit.sorted_out(known, {"CVE-2": "another"}) == ([it], [])


def test_carried_advisories_are_those_of_the_installed_version(audit: ModuleType) -> None:
    entry = {"specs": ["<2.7.2", ">=4,<4.1"], "id": "pyup-1", "cve": None, "advisory": "old"}
    advisories = {"$meta": {"timestamp": 0}, "Jinja2": [entry]}
    assert [it.ids for it in audit.ask_package({"jinja2": "2.7.1"}, advisories)] == [("pyup-1",)]
    assert [it.ids for it in audit.ask_package({"jinja2": "4.0"}, advisories)] == [("pyup-1",)]
    assert audit.ask_package({"jinja2": "3.1.6", "ray": "2.60.0"}, advisories) == []


def test_versions_are_asked_as_the_index_knows_them(audit: ModuleType) -> None:
    components = [{"name": "torch", "version": "2.13.0+cpu"}, {"name": "lorasweep", "version": "0.2.0.dev0"}]
    assert audit.versions({"components": components}) == {"torch": "2.13.0"}


@pytest.mark.parametrize(
    ("declared", "read", "is_copyleft"),
    [
        (("MIT", "whole text", []), "MIT", False),
        ((None, "UNKNOWN", []), "", False),
        ((None, "Apache 2.0\n\nmore", []), "Apache 2.0", False),
        (("MPL-2.0 AND MIT", None, []), "MPL-2.0 AND MIT", True),
        ((None, "x", ["License :: OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)"]), None, True),
        ((None, "GPL-3.0", ["Programming Language :: Python"]), "GPL-3.0", True),
        (("AGPL-3.0-only", None, []), "AGPL-3.0-only", True),
        (("HPND", None, []), "HPND", False),
    ],
)
def test_licences_are_read_and_copyleft_is_told(
    audit: ModuleType, declared: tuple[object, ...], read: str | None, is_copyleft: bool
) -> None:
    licence = audit.licence(*declared)
    assert read is None or licence == read
    assert audit.copyleft(licence) is is_copyleft
