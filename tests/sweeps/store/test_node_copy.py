"""What a machine's copy of a bucket remembers, where several threads work on trials of their own."""

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.folder import TrialFolder
from sweeps.store.node_copy import NodeCopy


def test_a_trial_that_leaves_is_forgotten_while_another_one_is_uploaded(tmp_path: Path) -> None:
    there: Any = SimpleNamespace(root=tmp_path, name=lambda path: path.relative_to(tmp_path).as_posix())
    copy = NodeCopy("", there, shared=False)
    copy._saved = {f"trials/t0000/items/{i}": (1, 1) for i in range(50_000)}
    began, errors = threading.Event(), []

    def upload() -> None:
        for i in range(50_000):
            copy._saved[f"trials/t0001/items/{i}"] = (2, 2)
            began.set()

    def leave() -> None:
        try:
            copy.leave(TrialFolder(tmp_path / "trials" / "t0000"))
        except RuntimeError as error:
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=upload), threading.Thread(target=leave)]
        threads[0].start()
        assert began.wait(30)
        threads[1].start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert errors == []
    assert copy._saved == {f"trials/t0001/items/{i}": (2, 2) for i in range(50_000)}


@pytest.mark.parametrize("other", ["t00001", "t0000-b"])
def test_a_trial_whose_name_begins_alike_is_another_one(other: str, tmp_path: Path) -> None:
    there: Any = SimpleNamespace(root=tmp_path, name=lambda path: path.relative_to(tmp_path).as_posix())
    copy = NodeCopy("", there, shared=False)
    copy._saved = {f"trials/{name}/items/1": None for name in ("t0000", other)}
    copy.leave(TrialFolder(tmp_path / "trials" / "t0000"))
    assert copy._saved == {f"trials/{other}/items/1": None}
