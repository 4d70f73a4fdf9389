"""What is installed: known vulnerabilities, licences, and a software bill of materials (CycloneDX, JSON).

    make audit                        # of .venv; AUDIT=--help
    make audit AUDIT=--offline        # without asking: advisories of the package safety-db alone, which are old

It ends with 1 where a vulnerability is known that ``requirements/accepted.toml`` does not name, with 2 where the
package index could not be asked about everything. The tools are those of ``requirements/audit.txt``, in an environment
of their own: they are no part of what is looked at.
"""

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = Path(__file__).parent
TOOLS = Path(sys.executable).parent
PROJECT = "lorasweep"
ADVISORIES = "safety_db"  # the last release that is free to download
_COPYLEFT = re.compile(
    r"\b(A?GPL|LGPL|MPL|EPL|EUPL|CDDL|OSL|CC-BY-SA|CECILL)|General Public License|Mozilla Public", re.I
)
_READ_METADATA = """
import importlib.metadata, json
def one(it):
    get = it.metadata.get
    classifiers = it.metadata.get_all("Classifier", [])
    return f"{get('Name')} {it.version}", get("License-Expression"), get("License"), classifiers
print(json.dumps([one(it) for it in importlib.metadata.distributions()]))
"""


@dataclass(frozen=True)
class Vulnerability:
    """A known vulnerability of something that is installed."""

    package: str
    version: str
    ids: tuple[str, ...]
    fixed_in: tuple[str, ...]
    summary: str


def bill_of_materials(python: str, to: Path) -> dict[str, Any]:
    """Write what an environment holds as CycloneDX, checked against its schema: the same bytes each time.

    Args:
        python: the environment's interpreter.
        to: the file.

    Returns:
        What was written.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    project = ["--pyproject", str(HERE.parent / "pyproject.toml"), "--mc-type", "application"]
    how = ["--output-reproducible", "--validate", "--spec-version", "1.6", "--output-format", "JSON"]
    command = [str(TOOLS / "cyclonedx-py"), "environment", *project, *how, "--output-file", str(to), python]
    subprocess.run(command, check=True)
    written: dict[str, Any] = json.loads(to.read_text())
    return written


def versions(bill: Mapping[str, Any]) -> dict[str, str]:
    """Package → version as the index knows it: of torch 2.13.0+cpu, say, 2.13.0. Our own package is not there."""
    components = [it for it in bill["components"] if canonicalize_name(it["name"]) != PROJECT]
    return {canonicalize_name(it["name"]): Version(it["version"]).public for it in components}


def licences(python: str) -> dict[str, str]:
    """Package with its version → the licence that it declares, as identifiers or words; "" where it declares none."""
    done = subprocess.run([python, "-c", _READ_METADATA], capture_output=True, text=True, check=True)
    return {name: licence(*declared) for name, *declared in json.loads(done.stdout)}


def licence(expression: str | None, words: str | None, classifiers: list[str]) -> str:
    """The licence that metadata name: the expression, else the classifiers, else the first line of its words."""
    named = [it.rpartition(" :: ")[2] for it in classifiers if it.startswith("License :: ") and "Approved" in it]
    first = next(iter((words or "").strip().splitlines()), "")[:80]
    return expression or " / ".join(named) or ("" if first.upper() == "UNKNOWN" else first)


def copyleft(licence: str) -> bool:
    """Whether a licence asks for the same terms of works that contain or change what it covers."""
    return bool(_COPYLEFT.search(licence))


def ask_index(python_packages: Mapping[str, str], service: str) -> tuple[list[Vulnerability], list[str]]:
    """What a vulnerability service knows of packages, by pip-audit.

    Args:
        python_packages: name → version.
        service: ``pypi`` or ``osv``.

    Returns:
        Known vulnerabilities, and the packages it could not be asked about.
    """
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "installed.txt")
        requirements.write_text("".join(f"{name}=={version}\n" for name, version in python_packages.items()))
        command = [str(TOOLS / "pip-audit"), "--requirement", str(requirements), "--no-deps", "--disable-pip"]
        command += ["--vulnerability-service", service, "--format", "json", "--progress-spinner", "off"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return answers(done.stdout, python_packages)


def answers(told: str, python_packages: Iterable[str]) -> tuple[list[Vulnerability], list[str]]:
    """What pip-audit printed as JSON: vulnerabilities, and those of the packages that it says nothing of."""
    try:
        entries = json.loads(told)["dependencies"]
    except (ValueError, KeyError):  # it could not connect
        entries = []
    known = [entry for entry in entries if "vulns" in entry]  # others were skipped, which pip-audit counts as a success
    vulnerabilities = [
        Vulnerability(
            entry["name"],
            entry["version"],
            (found["id"], *found.get("aliases", ())),
            tuple(found.get("fix_versions", ())),
            found.get("description", "").strip().splitlines()[0][:160] if found.get("description", "").strip() else "",
        )
        for entry in known
        for found in entry["vulns"]
    ]
    asked = {canonicalize_name(entry["name"]) for entry in known}
    return vulnerabilities, sorted(name for name in python_packages if canonicalize_name(name) not in asked)


def ask_package(python_packages: Mapping[str, str], advisories: Mapping[str, Any]) -> list[Vulnerability]:
    """What the advisories that a package carries say, as safety-db has them.

    Args:
        python_packages: name → version.
        advisories: name → its advisories, each with ``specs``, ``id``, ``cve`` and ``advisory``.
    """
    by_name = {canonicalize_name(name): entries for name, entries in advisories.items() if isinstance(entries, list)}
    return [
        Vulnerability(
            name,
            version,
            tuple(filter(None, (entry.get("id"), entry.get("cve")))),
            (),
            " ".join(entry.get("advisory", "").split())[:160],
        )
        for name, version in python_packages.items()
        for entry in by_name.get(name, [])
        if any(_within(version, spec) for spec in entry.get("specs", []))
    ]


def _within(version: str, spec: str) -> bool:
    try:
        return SpecifierSet(spec).contains(version, prereleases=True)
    except InvalidSpecifier:
        return False


def carried_advisories() -> tuple[Mapping[str, Any], str]:
    """The advisories that the tools' environment carries, and the day they are of."""
    spec = importlib.util.find_spec(ADVISORIES)
    assert spec is not None, "requirements/audit.txt names it"
    assert spec.origin is not None
    advisories: dict[str, Any] = json.loads(Path(spec.origin).with_name("insecure_full.json").read_text())
    made = datetime.fromtimestamp(advisories["$meta"]["timestamp"], UTC)
    return advisories, f"{made:%Y-%m-%d}"


def sorted_out(
    vulnerabilities: Iterable[Vulnerability], accepted: Mapping[str, str]
) -> tuple[list[Vulnerability], list[tuple[Vulnerability, str]]]:
    """Vulnerabilities that are to be mended, and those that are accepted, each with the reason."""
    open_ones, known = [], []
    for it in dict.fromkeys(vulnerabilities):
        reasons = [accepted[name] for name in it.ids if name in accepted]
        if reasons:
            known.append((it, reasons[0]))
        else:
            open_ones.append(it)
    return open_ones, known


def main(arguments: list[str]) -> int:
    """Audit an environment, print what was found, and say by the exit status whether that is good."""
    parser = argparse.ArgumentParser(prog="make audit", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", required=True, help="interpreter of the environment")
    parser.add_argument("--to", type=Path, required=True, help="file of the bill of materials")
    parser.add_argument("--service", choices=["pypi", "osv"], default="pypi", help="that is asked for vulnerabilities")
    parser.add_argument("--offline", action="store_true", help="ask none; an audit that could not ask fails otherwise")
    options = parser.parse_args(arguments)

    bill = bill_of_materials(options.python, options.to)
    installed = versions(bill)
    print(f"Bill of materials: {options.to} ({len(installed)} packages beside {PROJECT})")

    declared = licences(options.python)
    for title, some in (
        ("declare no licence", [name for name, terms in declared.items() if not terms]),
        ("are under copyleft", [f"{name} ({terms})" for name, terms in declared.items() if copyleft(terms)]),
    ):
        print(f"Licences: {len(some)} {title}{':' if some else ''}", *sorted(some, key=str.lower), sep="\n  ")

    advisories, day = carried_advisories()
    vulnerabilities = ask_package(installed, advisories)
    heading = "Vulnerabilities:"
    print(heading, f"{ADVISORIES} of {day}, asked about {len(installed)} packages, knows {len(vulnerabilities)}")
    unasked: list[str] = []
    if not options.offline:
        told, unasked = ask_index(installed, options.service)
        vulnerabilities += told
        asked = len(installed) - len(unasked)
        print(heading, f"{options.service}, asked about {asked} of {len(installed)} packages, knows {len(told)}")

    accepted = tomllib.loads((HERE / "accepted.toml").read_text())["vulnerabilities"]
    open_ones, known = sorted_out(vulnerabilities, accepted)
    for it, reason in known:
        print(f"  accepted: {it.package} {it.version} {it.ids[0]}: {reason}")
    for it in open_ones:
        mended = f"mended in {', '.join(it.fixed_in)}" if it.fixed_in else "no version that mends it is named"
        print(f"  KNOWN: {it.package} {it.version} {' '.join(it.ids)} ({mended}): {it.summary}")
    if open_ones:
        print("Take a version that mends it (constraints.txt, make requirements), or say why it does not reach")
        print("lorasweep: requirements/accepted.toml.")
        return 1
    if unasked:
        shown = ", ".join(unasked[:5]) + (f" and {len(unasked) - 5} more" if len(unasked) > 5 else "")
        print(f"NOT ASKED: {options.service} gave no answer for {shown}.")
        print("Nothing is known of these: ask where it can be reached, or the other service (AUDIT='--service osv').")
        print("AUDIT=--offline leaves the question out.")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
