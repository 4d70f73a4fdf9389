"""Data and model files of a node against those of the driver's machine."""

from pathlib import Path

from sweeps.checks import local_files as module
from sweeps.checks.local_files import differing, local_files
from sweeps.config import SweepConfig
from trainer.config import BiasConfig, DataConfig, ModelConfig


def config(folder: Path, **data: str) -> SweepConfig:
    return SweepConfig(
        data=DataConfig(**{"source": "csv", "train": str(folder / "train.csv"), **data}),
        model=ModelConfig(source="local", path=str(folder / "model")),
        bias=BiasConfig(pairs_file=str(folder / "pairs.csv")),
    )


def files(folder: Path) -> Path:
    (folder / "model").mkdir()
    for name in ("train.csv", "pairs.csv", "model/config.json", "model/model.safetensors", "model/.hidden"):
        (folder / name).write_text(f"{name}\n" * 9)
    return folder


def test_files_that_are_the_same_are_fine(tmp_path: Path) -> None:
    found = local_files(config(files(tmp_path)))
    assert [file.key for file in found] == ["bias.pairs_file", "data.train", "model.path"]
    assert differing("beta", found) == {}


def test_a_file_that_is_absent_or_changed_is_told_with_its_key_and_the_node(tmp_path: Path) -> None:
    found = local_files(config(files(tmp_path)))
    (tmp_path / "train.csv").unlink()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / ".hidden").unlink()  # such as a file manager's
    wrong = differing("beta", found)
    assert set(wrong) == {"data.train", "model.path"}
    assert wrong["data.train"].startswith(f"data.train={tmp_path}/train.csv: not there on node beta.")
    assert "node beta has another content there than this machine (config.json)" in wrong["model.path"]


def test_a_change_that_keeps_the_size_is_seen_in_small_files_and_at_the_ends_of_large_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_HASHED", 64)
    monkeypatch.setattr(module, "_END", 8)
    (tmp_path / "train.csv").write_bytes(b"a" * 200)
    found = local_files(config(tmp_path))
    for content, differs in ((b"a" * 199 + b"b", True), (b"b" + b"a" * 199, True), (b"a" * 200, False)):
        (tmp_path / "train.csv").write_bytes(content)
        assert bool(differing("beta", found)) is differs


def test_of_a_folder_with_many_files_some_are_compared_and_those_that_lack_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 3)
    (tmp_path / "texts").mkdir()
    for n in range(7):
        (tmp_path / "texts" / f"{n}.txt").write_text(f"{n}")
    found = local_files(SweepConfig(data=DataConfig(source="folder", train=str(tmp_path / "texts"))))
    assert list(found[0].content) == ["0.txt", "3.txt", "6.txt"]
    (tmp_path / "texts" / "3.txt").unlink()
    assert "node beta lacks 3.txt." in differing("beta", found)["data.train"]
    monkeypatch.setattr(module, "_MOST", 300)
    assert (
        len(local_files(SweepConfig(data=DataConfig(source="folder", train=str(tmp_path / "texts"))))[0].content) == 6
    )


def test_names_that_are_no_files_are_left_alone(tmp_path: Path) -> None:
    of_hub = SweepConfig(data=DataConfig(source="hub", train="train", validation="test", name="owner/name"))
    assert local_files(of_hub) == ()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    saved = SweepConfig(data=DataConfig(source="hub", train="train", name=str(tmp_path / "saved")))
    assert [file.key for file in local_files(saved)] == ["data.name"]


def test_a_folder_of_texts_is_compared_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "texts" / "a").mkdir(parents=True)
    (tmp_path / "texts" / "a" / "1.txt").write_text("one")
    found = local_files(SweepConfig(data=DataConfig(source="folder", train=str(tmp_path / "texts"))))
    (tmp_path / "texts" / "a" / "1.txt").write_text("two")
    assert "a/1.txt" in differing("beta", found)["data.train"]
