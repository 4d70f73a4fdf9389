"""Whether a node and the driver write to one folder; the node's own view is played by another folder."""

import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.errors import FolderError
from sweeps.checks import folder_probe
from sweeps.checks.folder_probe import probing


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(folder_probe, "_LAG", 0.5)


def test_what_each_writes_the_other_reads_and_nothing_stays(tmp_path: Path) -> None:
    with probing(str(tmp_path)) as probe:
        probe.answer("beta", "one")
        probe.confirm("beta", "one")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_names_the_node_and_says_what_to_do(tmp_path: Path) -> None:
    with probing(str(tmp_path)) as probe, pytest.raises(FolderError, match=r"node beta does not see .*sweep\.dir"):
        replace(probe, folder=str(tmp_path / "elsewhere")).answer("beta", "one")
    assert list(tmp_path.iterdir()) == []


def test_another_folder_at_the_same_path_is_told(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    with probing(str(tmp_path / "here")) as probe, pytest.raises(FolderError, match="node beta has another folder at"):
        replace(probe, folder=str(tmp_path / "there")).answer("beta", "one")


def test_a_copy_in_which_answers_stay_is_told(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with probing(str(tmp_path / "here")) as probe:
        shutil.copytree(tmp_path / "here", tmp_path / "there")
        replace(probe, folder=str(tmp_path / "there")).answer("beta", "one")
        with pytest.raises(FolderError, match=r"what node beta writes to .* does not appear on this machine"):
            probe.confirm("beta", "one")
    assert list((tmp_path / "here").iterdir()) == []


def test_a_file_that_takes_a_while_to_appear_is_waited_for(tmp_path: Path) -> None:
    with probing(str(tmp_path)) as probe:

        def later() -> None:
            time.sleep(0.2)
            probe.answer("beta", "one")

        thread = threading.Thread(target=later)
        thread.start()
        probe.confirm("beta", "one")
        thread.join()


def test_a_refusal_leaves_nothing(tmp_path: Path) -> None:
    def refused() -> None:
        with probing(str(tmp_path)) as probe:
            probe.answer("beta", "one")
            raise FolderError("refused")

    with pytest.raises(FolderError, match="refused"):
        refused()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_this_machine_cannot_write_to_is_told() -> None:
    with pytest.raises(FolderError, match=r"/proc: cannot be written .*sweep\.dir"), probing("/proc"):
        pass
