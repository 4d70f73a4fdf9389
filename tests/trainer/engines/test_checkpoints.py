"""What a checkpoint is of, and the order in which it comes to the disk."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from analysis.folder import TrialFolder
from tests.trainer.engines.test_pack import trials  # noqa: F401  # a fixture
from tests.trainer.engines.test_pack_equivalence import equal_lengths, materials  # noqa: F401  # fixtures
from tests.trainer.packs import packed_engine
from trainer.engines.checkpoints import COUNTERS, fault, remove, seal, write_tensors
from trainer.engines.trial_record import host_copies


def test_a_written_file_is_what_the_library_reads_and_its_digest_is_of_what_was_written(tmp_path: Path) -> None:
    tensors = {
        "a|exp_avg": torch.randn(3, 5),
        "a|step": torch.tensor(7.0),
        "ä": torch.randn(4, 4).to(torch.bfloat16),
        "transposed": torch.randn(6, 2).T,
    }
    digest = write_tensors(tmp_path / "file", tensors, {"format": "pt"})
    read = load_file(tmp_path / "file")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[name], tensor)
    with safe_open(tmp_path / "file", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert digest == hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()


def content(checkpoint: Path) -> dict[str, Any]:
    return {path.name: load_file(path) for path in checkpoint.glob("*.safetensors")}


@pytest.mark.parametrize("kernel", ["loop", "bmm"])
def test_a_snapshot_is_of_its_moment_however_far_training_has_gone_when_it_is_written(
    kernel: str,
    trials,  # noqa: F811
    materials,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Of two slots in one pack: the weights, the moments, the best rung."""
    engine = packed_engine(materials, kernel)
    for trial in trials(2):
        engine.admit(trial, TrialFolder(tmp_path / trial.trial_id), None)
    while engine.steps("t0000") < 4:
        engine.advance(lambda: True)
    engine.snapshot("t0000", tmp_path / "at once")()
    write = engine.snapshot("t0000", tmp_path / "later")
    for trial_id in ("t0000", "t0001"):
        engine.proceed(trial_id)
    while engine.steps("t0000") < 8:
        engine.advance(lambda: True)
    engine.release("t0001")  # its neighbour's stack is another one now
    write()
    engine.snapshot("t0000", tmp_path / "after")()
    expected, got, after = (content(tmp_path / name) for name in ("at once", "later", "after"))
    assert set(expected) == {"adapter_model.safetensors", "optimizer.safetensors", "best.safetensors"}
    for name, tensors in expected.items():
        assert tensors.keys() == got[name].keys()
        assert all(torch.equal(tensor, got[name][key]) for key, tensor in tensors.items()), name
        assert not all(torch.equal(tensor, after[name][key]) for key, tensor in tensors.items()), name
    assert fault(tmp_path / "later") == ""


def test_each_file_is_flushed_once_and_the_counters_are_last(
    trials,  # noqa: F811
    materials,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then the folder and the one above, so that the names of the files are on the disk too."""
    engine, to = packed_engine(materials), tmp_path / "t0000" / "checkpoint" / "4"
    engine.admit(trials(1)[0], TrialFolder(tmp_path / "t0000"), None)
    while not engine.advance():
        pass
    flushed: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    engine.snapshot("t0000", to)()
    assert sorted(flushed[:4]) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "best.safetensors",
        "optimizer.safetensors",
    ]
    assert flushed[4].startswith(f".{COUNTERS}")
    assert flushed[5:] == ["4", "checkpoint"]
    assert sorted(path.name for path in to.iterdir()) == sorted([*flushed[:4], COUNTERS])


def test_a_file_system_that_cannot_flush_a_folder_is_good_enough_but_a_broken_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refuse(error: int) -> None:
        def refused(descriptor: int) -> None:
            if Path(f"/proc/self/fd/{descriptor}").is_dir():
                raise OSError(error, os.strerror(error))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", refused)

    refuse(22)  # EINVAL
    seal(tmp_path, {"step": 1})
    refuse(5)  # EIO
    with pytest.raises(OSError, match="Input/output"):
        seal(tmp_path, {"step": 1})


def test_what_is_removed_in_part_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = TrialFolder(tmp_path).checkpoint_dir(4)
    checkpoint.mkdir(parents=True)
    seal(checkpoint, {"step": 4})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, ignore_errors: None)  # the process dies before
        remove(checkpoint)
    assert checkpoint.exists()
    assert TrialFolder(tmp_path).checkpoints() == []
    remove(checkpoint)
    assert not checkpoint.exists()
    remove(checkpoint)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_of_a_gpus_tensors_wait_for_it_once() -> None:
    tensors = {"whole": torch.randn(64, 64, device="cuda"), "part": torch.randn(64, 64, device="cuda")[:, :8]}
    expected = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
    torch.cuda.set_sync_debug_mode("error")  # raises where an operation waits by itself
    try:
        copies = host_copies(tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for tensor in tensors.values():
        tensor.zero_()
    assert all(copies[name].is_pinned() and torch.equal(copies[name], expected[name]) for name in tensors)
