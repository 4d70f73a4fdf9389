"""Files of a sweep folder and of a model folder that no program wrote: each ends in a row's reason or in a sentence."""

import os
import random
import struct
from pathlib import Path

import pytest
import yaml

from analysis import fast_yaml
from analysis.errors import FolderError, LorasweepError, ModelError, parsed_json
from analysis.folder import State, Status, SweepFolder, TrialFolder
from analysis.rows import read_rows
from analysis.statistics.items import read_table
from trainer.models.model_files import check_folder, tensors, width

DEEP = ["[" * 100_000, '{"a":' * 50_000]


@pytest.mark.parametrize("text", DEEP)
def test_json_that_is_nested_too_deep_is_no_json(text: str) -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        parsed_json(text)


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 50_000, "- " * 50_000])
def test_yaml_that_is_nested_too_deep_does_not_end_the_process(text: str) -> None:
    child = os.fork()
    if not child:
        status = 8
        try:
            fast_yaml.load(text)
        except (ValueError, yaml.YAMLError):
            status = 7
        finally:
            os._exit(status)  # whatever comes: it must not go on as a second run of the tests
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_yaml_as_deep_as_configs_are_is_read() -> None:
    assert fast_yaml.load("{a: " * 100 + "1" + "}" * 100 + " " * 500)


def test_yaml_that_is_deep_by_indentation_alone_is_refused_too() -> None:
    with pytest.raises(yaml.YAMLError, match="nested more than"):
        fast_yaml.load("".join(" " * i + "a:\n" for i in range(900)) + " " * 900 + "1")


def test_yaml_that_is_read_twice_is_a_copy_each_time() -> None:
    first = fast_yaml.load("a: [1, {b: 2}]")
    first["a"][1]["b"] = 3
    assert fast_yaml.load("a: [1, {b: 2}]") == {"a": [1, {"b": 2}]}


@pytest.mark.parametrize("text", DEEP)
@pytest.mark.parametrize("name", ["status.json", "metrics.jsonl"])
def test_a_trials_file_that_is_nested_too_deep_is_that_rows_reason(tmp_path: Path, name: str, text: str) -> None:
    folder = SweepFolder(tmp_path)
    files = folder.trial("t0000")
    files.write_status(Status(State.STOPPED_EARLY, "", 4))
    (files.root / name).write_text(text)
    (row,) = read_rows(folder, [])
    assert row.metrics == {}
    assert ("not a status file" in row.reason) == (name == "status.json")


def header(text: str, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text.encode() + body


@pytest.mark.parametrize(
    "content",
    [
        header(DEEP[0]),
        header('{"a.0.weight": {"shape": 7, "data_offsets": [0, 8]}}', b"0" * 8),
        header('{"a.0.weight": {"shape": "ab", "data_offsets": [0, 8]}}', b"0" * 8),
        header('{"a.0.weight": {"shape": [null, -3], "data_offsets": [0, 8]}}', b"0" * 8),
    ],
)
def test_weights_whose_header_makes_no_sense_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors: not a complete safetensors file"):
        tensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize("config", [DEEP[0], "null", "3", '"model_type"'])
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=r"config\.json: no"):
        check_folder(str(tmp_path))
    assert width(tmp_path / "config.json") == (None, "")


def test_an_index_and_an_adapter_that_are_nested_too_deep_are_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(DEEP[0])
    with pytest.raises(ModelError, match="an adapter only"):
        check_folder(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(header("{}"))
    (tmp_path / "model.safetensors.index.json").write_text(DEEP[0])
    with pytest.raises(ModelError, match=r"index\.json: not an index of weights"):
        check_folder(str(tmp_path))


def test_mutated_tables_and_headers_are_read_or_refused(tmp_path: Path) -> None:
    chooser = random.Random(0)
    files = TrialFolder(tmp_path / "t0000")
    table = files.write_items(
        "task", "validation", 4, {"item_id": ["a", "b"], "label": ["x", "y"], "prediction": ["x", "x"]}
    )
    whole = table.read_bytes()
    weights = header('{"a.0.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', b"0" * 8)
    refused: list[tuple[LorasweepError, str]] = []
    for _ in range(150):
        for content, path, read in (
            (whole, table, lambda: read_table(files, "task", 4)),
            (weights, tmp_path / "model.safetensors", lambda: tensors(tmp_path / "model.safetensors")),
        ):
            changed = bytearray(content)
            changed[chooser.randrange(len(changed))] = chooser.randrange(256)
            path.write_bytes(changed[: chooser.choice([len(changed), chooser.randrange(len(changed))])])
            try:
                read()
            except LorasweepError as error:
                refused.append((error, path.name))
    assert refused
    assert all(isinstance(error, FolderError | ModelError) and name in str(error) for error, name in refused)
