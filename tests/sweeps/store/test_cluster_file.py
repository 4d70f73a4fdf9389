"""The file by which nodes find the head of a sweep, and what ``lorasweep cluster`` says where it is of no use."""

import json
import os
import shutil
import socket
import stat
import tempfile
import time
from pathlib import Path

import pytest

from analysis.errors import FolderError
from analysis.folder import SweepFolder
from sweeps import cli
from sweeps.store.cluster_file import ClusterHead, NoHead, is_announced, read_head, write_head

FOLDER, HARDWARE, CONFIG = 5, 7, 2  # exit statuses


@pytest.fixture
def listening():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_it_is_written_whole_and_for_its_user_alone(tmp_path, listening, monkeypatch):
    folder, head = SweepFolder(tmp_path / "runs" / "x"), ClusterHead(listening, "secret")
    modes, replace = [], os.replace

    def noting(source, target):
        modes.append((stat.S_IMODE(os.stat(source).st_mode), json.loads(Path(source).read_text())["token"]))
        replace(source, target)

    monkeypatch.setattr(os, "replace", noting)
    old = os.umask(0)
    try:
        write_head(folder, head)
    finally:
        os.umask(old)
    assert modes == [(0o600, "secret")]
    assert stat.S_IMODE(folder.cluster_file.stat().st_mode) == 0o600
    assert read_head(folder) == head
    assert "secret" not in repr(head)
    assert is_announced(folder, head)
    assert not is_announced(folder, ClusterHead(listening, "another"))
    assert [path.name for path in folder.root.iterdir()] == [".cluster.json"]


def test_a_folder_with_it_still_takes_a_new_sweep(tmp_path, listening):
    from sweeps.config import SweepSettings
    from sweeps.store.folder_lock import new_folder

    write_head(SweepFolder(tmp_path / "x"), ClusterHead(listening, "secret"))
    assert new_folder(SweepFolder(tmp_path / "x"), SweepSettings(dir=str(tmp_path), name="x")).root == tmp_path / "x"


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (None, NoHead, "no such file, so no head of this sweep runs. Start one"),
        ('{"address": "127.0.0.1:1", "token": "x"}', NoHead, "names 127.0.0.1:1, where nothing answers"),
        ('{"address": "127.0.0.1:1", "token": ""}', FolderError, "no address and token in it"),
        ('{"address": "127.0.0.1:1"}', FolderError, "no address and token in it"),
        ('{"address": "127.0.0.1", "token": "x"}', FolderError, "no address and token in it"),
        ('{"addr', FolderError, "no address and token in it"),
        ("[]", FolderError, "no address and token in it"),
    ],
)
def test_where_it_leads_to_no_head_joining_says_why(content, error, said, tmp_path, capsys):
    folder = SweepFolder(tmp_path)
    if content is not None:
        folder.cluster_file.write_text(content)
    with pytest.raises(error, match=said):
        read_head(folder)
    began = time.monotonic()
    status = cli.main(["cluster", "join", str(tmp_path), "--wait", "1s", "--cpus", "1"])
    assert time.monotonic() - began < 30
    assert status == (HARDWARE if error is NoHead else FOLDER)
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_told_that_the_file_is_not_for_him(listening, capsys):
    root = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        root.chmod(0o755)
        write_head(SweepFolder(root), ClusterHead(listening, "secret"))
        os.seteuid(65534)
        try:
            status = cli.main(["cluster", "join", str(root), "--wait", "1s", "--cpus", "1"])
        finally:
            os.seteuid(0)
        assert status == FOLDER
        assert "cannot be read (Permission denied)" in " ".join(capsys.readouterr().err.split())
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["join"], "required: RUN"),
        (["join", "runs/x", "--wait", "soon"], "--wait=soon: expected a time such as 90s"),
        (["join", "runs/x", "--cpus", "0"], "--cpus 0: a node needs one at least"),
        (["join", "s3://bucket/x"], "s3://"),
        (["announce"], "lorasweep cluster announce HOST:PORT run"),
        (["announce", "h:1", "run", "experiment=nothing"], "nothing"),
        (["announce", "h:1", "resume"], "which sweep?"),
        (["announce", "h:1", "run", "experiment=quickstart"], "no token: workers join by the one of the head"),
    ],
)
def test_what_cannot_be_joined_or_announced_is_told(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["cluster", *words]) == CONFIG
    assert said in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_a_head_is_announced_in_the_folder_of_its_sweep(tmp_path, monkeypatch, capsys, listening):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    words = ["run", "experiment=quickstart", "sweep.name=mine", "--quiet"]
    assert cli.main(["cluster", "announce", listening, *words]) == 0
    out = capsys.readouterr().out
    assert out.strip() == str(tmp_path / "runs" / "mine" / ".cluster.json")
    assert read_head(SweepFolder(tmp_path / "runs" / "mine")) == ClusterHead(listening, "secret")
    assert "secret" not in out
