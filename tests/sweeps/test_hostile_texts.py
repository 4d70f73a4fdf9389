"""A sweep folder in which every text is hostile, and ones that are damaged: what the reading commands print of them."""

import json
import sys
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
import yaml

from analysis.folder import State, Status, SweepFolder
from sweeps import cli
from tests.benchmarks import synthetic

HOSTILE = "=x\x1b[2J\x1b]0;t\x07\r\x00\x7f\x85\x9b31m\u202e\u2066\u2028\u2029[/red]<script>alert(1)</script>"
COMMANDS = [
    ["rank"], ["rank", "--json"], ["rank", "--csv"], ["status"], ["status", "--json"], ["breakdown"], ["compare"],
    ["answers"], ["report"], ["export", "--to", "out"], ["stop"], ["rank", "--by", HOSTILE.replace("\x00", "")],
    ["breakdown", HOSTILE], ["resume", "--view", "plain"],
]  # fmt: skip


def steering(text: str) -> list[str]:
    """Characters that could steer a terminal."""
    return [c for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")] + [
        c for c in text if c in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f"
    ]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    folder = synthetic.make(tmp_path_factory.mktemp("runs") / "x", 4, items=40, pairs=12, completes=1.0)
    manifest = yaml.safe_load(folder.sweep_file.read_text())
    manifest["name"] = HOSTILE
    manifest["command"] = ["lorasweep", HOSTILE]
    manifest["versions"] = {HOSTILE: HOSTILE}
    manifest["hardware"] = {"host": HOSTILE, "devices": [{"device": HOSTILE}]}
    manifest["data"]["labels"] = [HOSTILE, "a"]
    manifest["config"]["search"] = {"trials": 4}
    manifest["config"]["objective"]["name"] = HOSTILE
    folder.sweep_file.write_text(yaml.safe_dump(manifest))
    for files in folder.trials():
        state = files.read_status().state
        files.write_status(Status(state, HOSTILE, 36, where=HOSTILE, notes=(HOSTILE, "-" + HOSTILE)))
        table = files.items_dir / "task-validation-36.parquet"
        if table.exists():
            columns = files.read_items("task", "validation", 36)
            for name in ("label", "prediction", "group"):
                columns[name] = [f"{value}{HOSTILE}" for value in columns[name]]
            files.write_items("task", "validation", 36, columns)
        config = yaml.safe_load(files.config_file.read_text())
        config["lora"]["alpha_rule"] = HOSTILE
        files.config_file.write_text(yaml.safe_dump(config))
    folder.trial("t0099").write_status(Status(State.RUNNING, HOSTILE, where=HOSTILE))
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=lambda it: ascii(" ".join(it))[:30])
def test_nothing_that_a_command_prints_can_steer_a_terminal(
    command: list[str], hostile: SweepFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    where = [str(hostile.root)] * (2 if command == ["compare"] else 1)
    status = cli.main([command[0], *where, *command[1:]])
    said = capsys.readouterr()
    assert steering(said.out) == []
    assert steering(said.err) == []
    assert "defect" not in said.err, said.err
    assert status in (0, 1, 2, 5)
    if "--json" in command:
        assert HOSTILE in str(json.loads(said.out)) or repr(HOSTILE)[1:-1] in str(json.loads(said.out))
    if command == ["report"]:
        page = (hostile.root / "report.html").read_text().split("<script>")[0]
        assert steering(page) == []
        assert "<script>alert" not in page


def test_the_csv_is_text_and_numbers_to_a_spreadsheet(hostile: SweepFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rank", str(hostile.root)]) == 0
    capsys.readouterr()
    frame = pd.read_csv(hostile.leaderboard_file)
    texts = [cell for name in frame.select_dtypes("object") for cell in frame[name].dropna()]
    assert [cell for cell in texts if cell.startswith(tuple("=+-@\t\r"))] == []
    assert any(cell.startswith("'=x") for cell in texts)
    assert frame["bias.crows_pairs.signed"].dtype == float


DEEP = "[" * 100_000
DAMAGE = {
    "empty": b"", "truncated": b"format_version: 1\nconfig: {", "binary": bytes(range(256)), "text": b"hello",
    "list": b"[1, 2]", "brackets": b"a: " + DEEP.encode(), "dashes": b"- " * 100_000, "number": b"1e400",
    "wrong": b"format_version: 1\nuid: 1\nname: 2\nconfig: 3\nunresolved: 4\nspace: 5\ndata: 6\n",
    "wrong below": b"format_version: 1\nuid: a\nname: b\nconfig: {objective: 3, search: 4}\nunresolved: {}\nspace: {}\n"
    b"data: {}\n",
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", ["rank", "status", "breakdown", "compare", "answers", "report", "export", "resume"])
def test_a_damaged_record_of_a_sweep_is_named(
    damage: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sweep.yaml").write_bytes(DAMAGE[damage])
    rest = {"compare": [str(tmp_path / "y")], "export": ["--to", str(tmp_path / "out")]}.get(command, [])
    status = cli.main([command, str(tmp_path / "x"), *rest])
    said = capsys.readouterr()
    assert "defect" not in said.err, said.err
    assert status == 5
    assert "sweep.yaml" in said.err
    assert steering(said.out + said.err) == []
    assert len(said.err) < 2_000


FILES = ["status.json", "metrics.jsonl", "config.yaml", "lineage.jsonl", "adapter_size.json"]
BROKEN: dict[str, bytes] = {
    "empty": b"", "binary": bytes(range(256)), "brackets": DEEP.encode(), "list": b"[1]", "huge": b"1" + b"0" * 5000,
    "wrong": b'{"state": 3, "step": 1e400, "trial_id": [], "metrics": 3}',
    "wrong below": b'{"state": "completed", "step": 1e400, "reason": 3, "notes": 4, "parameters": "x"}',
}  # fmt: skip


@pytest.mark.parametrize("damage", BROKEN)
def test_a_damaged_file_of_a_trial_hides_no_other(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = synthetic.make(tmp_path / "x", 3, items=40, pairs=12, completes=1.0)
    manifest = yaml.safe_load(folder.sweep_file.read_text())
    manifest["config"]["search"] = {"trials": 3}
    folder.sweep_file.write_text(yaml.safe_dump(manifest))
    for name in FILES:
        (folder.trials()[0].root / name).write_bytes(BROKEN[damage])
    for path in (folder.asks_file, folder.control_dir / "spent.json", folder.control_dir / "driver.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(BROKEN[damage])
    (folder.root / "study" / "spent.json").write_bytes(BROKEN[damage])
    for command in ("rank", "status"):
        cli.main([command, str(folder.root)])
        said = capsys.readouterr()
        assert "defect" not in said.err, said.err
        assert "Traceback" not in said.err
        assert steering(said.out + said.err) == []
        assert command == "status" or "t0002" in said.out


def test_what_a_command_prints_is_as_long_as_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "lora.rank=" + DEEP]) == 2
    assert len(capsys.readouterr().err) < 3_000
    assert sys.stdout is not None
