"""Data sets by name or folder mean what their files say, whatever ``datasets`` would make of the values."""

import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest

from analysis.errors import DataError
from trainer.config import DataConfig, SplitConfig
from trainer.data.dataset import Dataset, load_dataset

LOOKALIKES = [
    ("007", "7"), ("1e3", "1000"), ("None", "NA"), ("1.0", "1"), ("true", "True"), ("2020-01-02", "2020-01-02 00:00"),
]  # fmt: skip
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def rows_of(labels: Sequence[str]) -> list[dict[str, str]]:
    return [{"text": f"text {i}, of {label}", "label": label} for i in range(3) for label in labels]


def write(path: Path, rows: list[dict[str, str]], separator: str = ",") -> Path:
    kind = path.name.split(".")[1]
    if kind == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    elif kind == "json":
        text = json.dumps(rows, indent=1)
    else:
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter="\t" if kind == "tsv" else separator).writerows(lines)
        text = path.read_text()
    raw = text.encode()
    if path.suffix == ".gz":
        raw = gzip.compress(raw)
    elif path.suffix == ".zst":
        raw = pa.compress(raw, "zstd", asbytes=True)
    path.write_bytes(raw)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with nothing of a test in its name: ``datasets`` tells splits by names."""
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def of_hub(name: Path | str) -> Dataset:
    return load_dataset(DataConfig("hub", train="train", validation="validation", name=str(name)))


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("labels", LOOKALIKES, ids=str)
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "csv.gz", "jsonl.zst"])
def test_a_folder_means_what_its_files_mean(kind: str, labels: tuple[str, str], folder: Path) -> None:
    files = {name: write(folder / f"{name}.{kind}", rows_of(labels)) for name in ("train", "validation")}
    source = {"json": "jsonl"}.get(kind.split(".")[0], kind.split(".")[0])
    plain = load_dataset(
        DataConfig(source, train=str(files["train"]), validation=str(files["validation"]), allow_overlap=True)
    )
    assert set(plain.labels) == set(labels)
    assert of_hub(folder) == plain
    alone = load_dataset(DataConfig("hub", train="train", name=str(files["train"]), split=SplitConfig(validation=0.34)))
    assert alone == load_dataset(DataConfig(source, train=str(files["train"]), split=SplitConfig(validation=0.34)))


def test_files_of_a_split_are_joined_and_rows_keep_their_places(folder: Path) -> None:
    rows = rows_of(("007", "7"))
    for name, part in (("train-00000-of-00002", rows[:2]), ("train-00001-of-00002", rows[2:]), ("validation", rows)):
        write(folder / f"{name}.csv", part)
    data = of_hub(folder)
    assert [row.text for row in data.train] == [row["text"] for row in rows]
    assert data.train[3].place.endswith("train-00001-of-00002.csv, line 3")
    assert data.train[3].item_id.startswith("train-3-")


def test_what_a_data_set_declares_of_its_files_is_kept(folder: Path) -> None:
    for name in ("train", "validation"):
        write(
            folder / f"{name}.csv",
            [{"text": "NA" if i == 1 else f"{i}; 1,0", "label": str(i % 2)} for i in range(6)],
            "~",
        )
    (folder / "README.md").write_text(
        '---\nconfigs:\n- config_name: default\n  sep: "~"\n'
        "dataset_info:\n  features:\n  - {name: text, dtype: string}\n"
        "  - name: label\n    dtype:\n      class_label:\n        names: {'0': bad, '1': good}\n---\n"
    )
    data = of_hub(folder)
    assert (data.train[1].text, data.train[1].label, data.labels) == ("NA", "good", ("bad", "good"))


def test_one_file_has_one_split(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", rows_of(("a", "b")))
    with pytest.raises(DataError, match=r"data\.validation=validation: .*one file, which has the split train only"):
        of_hub(file)


# --- a hub of its own


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """The address of a hub that holds ``me/labels``: CSV files whose labels are 007 and 7."""
    folder = tmp_path / "served"
    folder.mkdir()
    for name in ("train", "validation"):
        write(folder / f"{name}.csv", rows_of(("007", "7")))
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            asked = self.rfile.read(length).decode()
            path = self.path.split("?")[0]
            entry = [
                {"type": "file", "path": name, "size": size, "oid": f"{size:040x}"} for name, size in sizes.items()
            ]
            body, status, kind = b"", 404, "application/json"
            if path.startswith("/datasets/me/labels/resolve/") and (file := folder / path.rsplit("/", 1)[1]).exists():
                body, status, kind = file.read_bytes(), 200, "text/plain"
            elif "/tree/" in path:
                body, status = json.dumps(entry).encode(), 200
            elif "/paths-info/" in path:
                body, status = json.dumps([one for one in entry if one["path"] in asked]).encode(), 200
            elif path in ("/api/datasets/me/labels", f"/api/datasets/me/labels/revision/{COMMIT}"):
                about = {"id": "me/labels", "sha": COMMIT, "siblings": [{"rfilename": name} for name in sizes]}
                body, status = json.dumps(about).encode(), 200
            elif path.startswith("/api/datasets/me/labels/revision/"):
                body, status = json.dumps({"id": "me/labels", "sha": COMMIT, "siblings": []}).encode(), 200
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{len(body):040x}"')
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


READ = """
from trainer.config import DataConfig
from trainer.data.dataset import load_dataset
data = load_dataset(DataConfig("hub", train="train", validation="validation", name="me/labels"))
print(*data.labels, data.fingerprint)
"""


def read_by_another_process(code: str, home: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    ours = {"HF_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[3]), "HF_HUB_DISABLE_XET": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
    return subprocess.run(
        [sys.executable, "-c", code], env={**kept, **ours, **environment}, capture_output=True, text=True, check=False
    )


def test_csv_files_of_the_hub_mean_what_they_say_and_are_used_again_without_a_network(hub: str, tmp_path: Path) -> None:
    plain = load_dataset(
        DataConfig("csv", train=f"{tmp_path}/served/train.csv", validation=f"{tmp_path}/served/validation.csv")
    )
    online = read_by_another_process(READ, tmp_path / "home", HF_ENDPOINT=hub)
    assert online.stdout.split() == ["007", "7", plain.fingerprint], online.stderr[-2000:]
    offline = read_by_another_process(READ, tmp_path / "home", HF_HUB_OFFLINE="1")
    assert offline.stdout == online.stdout, offline.stderr[-2000:]


def test_a_copy_whose_types_were_guessed_is_not_used(hub: str, tmp_path: Path) -> None:
    guessed = 'import datasets; print(datasets.load_dataset("me/labels")["train"].features["label"].dtype)'
    loaded = read_by_another_process(guessed, tmp_path / "home", HF_ENDPOINT=hub)
    assert loaded.stdout.split() == ["int64"], loaded.stderr[-2000:]
    offline = read_by_another_process(READ, tmp_path / "home", HF_HUB_OFFLINE="1")
    assert offline.stdout.split()[:2] == ["007", "7"], offline.stderr[-2000:]  # of the files, not of that copy
    shutil.rmtree(tmp_path / "home" / "hub")
    without = read_by_another_process(READ, tmp_path / "home", HF_HUB_OFFLINE="1")
    assert "data.name=me/labels: cannot be loaded (only a copy with guessed types" in without.stderr
