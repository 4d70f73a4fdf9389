# ruff: noqa: E501  # a row of the table is a line
"""Input that cannot be run: what the command line says, its exit status, and that nothing is left behind."""

import errno
import gzip
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sweeps import cli
from sweeps.compose.compose import compose

CONFIG, DATA, MODEL, FOLDER, FETCH, HARDWARE = 2, 3, 4, 5, 6, 7  # exit statuses


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to run in. Nothing here may start Ray: what is told from files is told before."""
    import ray

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray was started"))
    return tmp_path


@pytest.fixture
def refused(here, tiny, capsys):
    """Runs a command that must be refused: exit status, every one of the words, no traceback, nothing written."""

    def check(status: int, words: list[str], *overrides: str, model: str = "llama", command: str = "run") -> str:
        before = sorted(here.rglob("*"))
        code = cli.main([command, *tiny(model, *overrides)])
        said = capsys.readouterr()
        assert [word for word in words if word not in said.err] == [], said.err
        assert code == status, said.err
        assert "Traceback" not in said.out + said.err
        assert "defect of lorasweep" not in said.err
        assert sorted(here.rglob("*")) == before
        return said.err

    return check


def rows(path: Path, *lines: str, header: str = "text,label") -> Path:
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


GOOD = ["the apple,fruit", "the pear,fruit", "the iron,metal", "the tin,metal"]


# --- the table of wrong inputs


@dataclass(frozen=True)
class Wrong:
    """A wrong input: what is prepared in an empty folder, what is asked for, and what must be said.

    Attributes:
        status: exit status.
        words: every one stands in the message.
        overrides: added to those of a sweep that works.
        prepare: makes files; ``model`` is a copy of a good model folder.
        command: the subcommand.
    """

    status: int
    words: list[str]
    overrides: list[str]
    prepare: Callable[[Path], object] = lambda here: None
    command: str = "run"


def csv_of(*lines: str, header: str = "text,label") -> Callable[[Path], object]:
    return lambda here: rows(here / "train.csv", *lines, header=header)


def bytes_of(content: bytes, name: str = "train.csv") -> Callable[[Path], object]:
    return lambda here: (here / name).write_bytes(content)


def chat_of(*messages: dict[str, object]) -> Callable[[Path], object]:
    return bytes_of(json.dumps({"messages": messages}).encode() + b"\n", "train.jsonl")


def model_with(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda here: change(here / "model")


def without(name: str) -> Callable[[Path], object]:
    return model_with(lambda model: (model / name).unlink())


def own_code(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "evil", "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


def weights(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def spoil(model: Path) -> None:
        file = model / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return model_with(spoil)


TRAIN = ["data.train=train.csv"]
BOTH = ["data.train=train.csv", "data.validation=train.csv"]
CHAT = ["data=jsonl", "data.train=train.jsonl", "data.validation=train.jsonl"]
MADE = ["data.train=train.csv", "data.validation=null"]
FOLDER_OF_MODEL = ["model.path=model"]
USER, ANSWER = {"role": "user", "content": "the apple"}, {"role": "assistant", "content": "a pear"}
MANY = [f"word {i},class {i}" for i in range(200)]

WRONG = {
    # files
    "a file that is not there": Wrong(DATA, ["data.train=", "trian.csv: no such file", "'train.csv'"], ["data.train=trian.csv"], csv_of(*GOOD)),
    "0 bytes": Wrong(DATA, ["empty.csv", "empty (0 bytes)", "data.validation"], ["data.validation=empty.csv"], bytes_of(b"", "empty.csv")),
    "0 rows": Wrong(DATA, ["train.csv", "no rows", "data.train"], TRAIN, csv_of()),
    "1 row": Wrong(DATA, ["train.csv", "every row has the label 'fruit'"], TRAIN, csv_of(GOOD[0])),
    "1 validation row": Wrong(DATA, ["v.csv, line 2", "only validation row"], ["data.validation=v.csv"], lambda here: rows(here / "v.csv", "the owl,bird")),
    "a directory for a file": Wrong(DATA, ["data.train=", "/data is a directory", "data=folder"], ["data.train=data"], lambda here: (here / "data").mkdir()),
    "a file for a directory": Wrong(DATA, ["train.csv is no folder"], ["data=folder", *BOTH], csv_of(*GOOD)),
    "a folder without texts": Wrong(DATA, ["no *.txt file in it"], ["data=folder", "data.train=d", "data.validation=d"], lambda here: (here / "d").mkdir()),
    "a cut gzip": Wrong(DATA, ["train.csv", "not a complete gzip archive"], TRAIN, bytes_of(gzip.compress(b"text,label\n" * 9, mtime=0)[:20])),
    "a zip in a gzip": Wrong(DATA, ["train.csv", "Zip archive"], TRAIN, bytes_of(gzip.compress(b"PK\x03\x04....", mtime=0))),
    "an Excel workbook": Wrong(DATA, ["train.csv", "Excel workbook", "save the sheet as CSV"], TRAIN, bytes_of(b"PK\x03\x04" + bytes(9))),
    "Parquet under another name": Wrong(DATA, ["train.csv", "Parquet", "data=parquet"], TRAIN, bytes_of(b"PAR1" + bytes(20))),
    "a broken Parquet file": Wrong(DATA, ["a.parquet", "not a complete Parquet file"], ["data=parquet", "data.train=a.parquet"], bytes_of(b"PAR1" + bytes(20), "a.parquet")),
    "a broken Arrow file": Wrong(DATA, ["a.arrow", "not a complete Arrow file"], ["data=arrow", "data.train=a.arrow"], bytes_of(b"ARROW1\0\0" + bytes(20), "a.arrow")),
    "a broken encoding": Wrong(DATA, ["train.csv, line 2", "not UTF-8", "iconv", "data.on_error=skip"], TRAIN, bytes_of(b"text,label\nthe caf\xe9,fruit\n")),
    "UTF-16": Wrong(DATA, ["train.csv", "UTF-16", "save it as UTF-8"], TRAIN, bytes_of("text,label\n".encode("utf-16"))),
    "a path that the system refuses": Wrong(DATA, ["data.train=", "cannot be read (File name too long)"], [f"data.train={'x' * 300}"]),
    "no permission to write": Wrong(FOLDER, ["/proc/runs", "cannot be written", "sweep.dir="], ["sweep.dir=/proc/runs"]),
    "a hub data set without a network": Wrong(DATA, ["data.name=nobody/nothing", "HF_HUB_OFFLINE is set"], ["data=hub", "data.name=nobody/nothing", "data.train=train", "data.validation=test"]),
    # columns and rows
    "a missing column": Wrong(DATA, ["no column 'labels'", "data.label", "Did you mean 'label'?"], ["data.label=labels"]),
    "duplicated columns": Wrong(DATA, ["column 'text' (data.text) stands there more than once"], BOTH, csv_of("a,b,fruit", "c,d,fruit", header="text,text,label")),
    "another separator": Wrong(DATA, ["separated by ';'", "use data=csv"], ["data=tsv", *TRAIN], csv_of(header="text;label")),
    "a row of too many cells": Wrong(DATA, ["train.csv, line 6", "3 cells, but the header has 2"], TRAIN, csv_of(*GOOD, "a, plum,fruit")),
    "a quote that is not closed": Wrong(DATA, ["train.csv, line 6", "never closed"], TRAIN, csv_of(*GOOD, '"the plum,fruit')),
    "broken JSON": Wrong(DATA, ["train.jsonl, line 1", "not valid JSON"], CHAT, bytes_of(b"{oops\n", "train.jsonl")),
    "an empty text": Wrong(DATA, ["train.csv, line 6", "'text' (data.text) is empty"], TRAIN, csv_of(*GOOD, " ,fruit")),
    "an empty label": Wrong(DATA, ["train.csv, line 6", "'label' (data.label) is empty"], TRAIN, csv_of(*GOOD, "the plum,")),
    "a NaN label": Wrong(DATA, ["train.jsonl, line 2", "'label' (data.label) is empty"], CHAT, bytes_of(b'{"text": "a", "label": 1.0}\n{"text": "b", "label": NaN}\n', "train.jsonl")),
    "rows that are all broken": Wrong(DATA, ["no rows that can be used (2 left out", "line 2"], [*TRAIN, "data.on_error=skip"], csv_of("a,", ",b")),
    # classes
    "1 class": Wrong(DATA, ["train.csv", "every row has the label 'fruit'"], TRAIN, csv_of(*GOOD[:2])),
    "a class of one row": Wrong(DATA, ["train.csv, line 6", "'bird' has one training row"], TRAIN, csv_of(*GOOD, "the owl,bird")),
    "200 classes": Wrong(CONFIG, ["eval.rung_items=12", "200 labels", "eval.rung_items=400"], BOTH, csv_of(*MANY, *MANY)),
    "2,000 classes": Wrong(DATA, ["2000 different labels", "at most 1000", "data.label"], BOTH, csv_of(*(f"a {i},c{i}" for i in range(2000)))),
    "unseen validation labels": Wrong(DATA, ["v.csv, line 6", "no training row has: 'tree'"], ["data.validation=v.csv"], lambda here: rows(here / "v.csv", "the apple,fruit", "iron,metal", "owl,bird", "tin,metal", "the oak,tree")),
    # schemas, templates, conversations
    "an unknown schema": Wrong(CONFIG, ["data.schema='prose'", "label, completion, chat, text"], ["data.schema=prose"]),
    "columns of two schemas": Wrong(DATA, ["more than one schema: label and completion", "data.schema="], BOTH, csv_of("a,b,c,d", header="text,label,prompt,completion")),
    "columns of no schema": Wrong(DATA, ["no column 'label'", "'text', 'topic'", "data.schema=text"], BOTH, csv_of("a,b", header="text,topic")),
    "a key of another schema": Wrong(CONFIG, ["data.label is not used by data.schema=text"], ["data.schema=text", "data.label=label"]),
    "a schema without labels for a classifier": Wrong(CONFIG, ["data.schema=text with task=classification"], ["data.schema=text", "task=classification"]),
    "an objective that the schema does not yield": Wrong(CONFIG, ["'accuracy' is not measured", "bits_per_byte"], ["data.schema=text", "objective=single", "objective.terms.quality.metric=accuracy"]),
    "a broken template": Wrong(CONFIG, ["data.template, line 1", "not a Jinja template"], ['data.template="{{ text"', "data.schema=label"]),
    "a template of a missing column": Wrong(DATA, ["no column 'txet' (data.template)", "'text'"], ['data.template="{{ txet }}"', "data.schema=label"]),
    "a template without a column": Wrong(CONFIG, ["data.template", "no column in it"], ["data.template=text", "data.schema=label"]),
    "bad chat roles": Wrong(DATA, ["train.jsonl, line 1", "role 'asistant'", "'assistant'"], CHAT, chat_of(USER, {"role": "asistant", "content": "x"})),
    "a conversation without an answer": Wrong(DATA, ["train.jsonl, line 1", "no message of the assistant"], CHAT, chat_of(USER)),
    "chat with a model without a template": Wrong(MODEL, ["no chat template", "data.schema=completion"], CHAT, lambda here: bytes_of(b"".join(2 * [json.dumps({"messages": [USER, ANSWER]}).encode() + b"\n"]), "train.jsonl")(here), "data"),
    "a 50,000-character question that leaves no answer": Wrong(DATA, ["train.jsonl, line 1", "data.max_length=128 cuts it off"], [*CHAT, *FOLDER_OF_MODEL, "data.max_length=128"], lambda here: long_question(here), "data"),
    "50,000-character labels": Wrong(CONFIG, ["data.max_length=128 leaves no room", "shorten"], [*BOTH, "data.max_length=128"], csv_of(*2 * ["a," + "the apple " * 5000, "b,metal"]), "data"),
    # splits
    "validation given and made": Wrong(DATA, ["both say which rows are for validation"], ["data.split.validation=0.2"]),
    "neither given nor made": Wrong(CONFIG, ["data.validation", "data.split.validation=0.2"], ["data.validation=null", "data.split.validation=0"]),
    "a split of nothing": Wrong(DATA, ["data.split.validation=0.05 of 4 rows is none"], [*MADE, "data.split.validation=0.05"], csv_of(*GOOD)),
    "a group column that is not there": Wrong(DATA, ["no column 'author' (data.split.group)"], [*MADE, "data.split.validation=0.5", "data.split.group=author"], csv_of(*GOOD)),
    "a share above 1": Wrong(CONFIG, ["data.split.validation=20", "at most 0.9"], ["data.split.validation=20"]),
    # models
    "a model folder that is not there": Wrong(MODEL, ["model.path=", "nowhere", "no such folder"], ["model.path=nowhere"]),
    "a model folder without tokenizer": Wrong(MODEL, ["no tokenizer", "save_pretrained"], FOLDER_OF_MODEL, without("tokenizer.json")),
    "a model folder without config": Wrong(MODEL, ["no config.json", "It holds: "], FOLDER_OF_MODEL, without("config.json")),
    "a model folder without weights": Wrong(MODEL, ["no *.safetensors weights", "It holds: "], FOLDER_OF_MODEL, without("model.safetensors")),
    "a broken config.json": Wrong(MODEL, ["config.json", "not valid JSON"], FOLDER_OF_MODEL, model_with(lambda model: (model / "config.json").write_text("{"))),
    "a broken tokenizer.json": Wrong(MODEL, ["model", "tokenizer cannot be loaded"], FOLDER_OF_MODEL, model_with(lambda model: (model / "tokenizer.json").write_text("{")), "data"),
    "a pickle weight file": Wrong(MODEL, ["weights are pickled (pytorch_model.bin)", "can run code"], FOLDER_OF_MODEL, model_with(lambda model: (model / "model.safetensors").rename(model / "pytorch_model.bin"))),
    "safetensors cut short": Wrong(MODEL, ["model.safetensors", "not a complete safetensors file", "copy it again"], FOLDER_OF_MODEL, weights(lambda content: content[: len(content) // 2])),
    "corrupt safetensors": Wrong(MODEL, ["model.safetensors", "not a complete safetensors file"], FOLDER_OF_MODEL, weights(lambda content: b"<html>404 Not Found</html>" * 9)),
    "no model path": Wrong(CONFIG, ["model.path"], ["model.path=null"]),
    "misspelt targets": Wrong(MODEL, ["lora.targets=q_proj+v_porj", "no linear module 'v_porj'", "'v_proj'", "gate_proj"], ["lora.targets=q_proj+v_porj"]),
    "misspelt targets in the space": Wrong(MODEL, ["lora.targets=query", "no linear module 'query'"], ["lora.targets=choice(q_proj,query)"]),
    # config and space
    "a value out of range": Wrong(CONFIG, ["lora.rank=0", "at least 1", "override 'lora.rank=0'"], ["lora.rank=0"]),
    "a searched value out of range": Wrong(CONFIG, ["lora.rank", "-8", "at least 1"], ["lora.rank=choice(4,-8)"]),
    "a misspelt key": Wrong(CONFIG, ["'lora.rnak' is not a config key", "'lora.rank'"], ["lora.rnak=8"]),
    "a misspelt key of the space": Wrong(CONFIG, ["lora.ranks", "'lora.rank'"], ["+space.lora.ranks.choices=[2]"]),
    "an unknown precision": Wrong(CONFIG, ["precision", "fp13", "fp32, bf16, int8, nf4"], ["precision=fp13"]),
    "a logarithm from 0": Wrong(CONFIG, ["optim.lr"], ["optim.lr=tag(log,interval(0,1e-3))"]),
    "rungs past the end": Wrong(CONFIG, ["train.rungs=[2, 4]", "train.max_steps=8"], ["train.rungs=[2,4]"]),
    "an unknown option": Wrong(CONFIG, ["task=regression", "classification", "completion"], ["task=regression"]),
    "a sweep folder as a file's URI": Wrong(CONFIG, ["sweep.dir=file:///a", "path of a file or folder", "sweep.dir=/a"], ["sweep.dir=file:///a"]),
    "a sweep folder in a bucket, with its key": Wrong(CONFIG, ["s3://***@bucket", "a key or a password"], ["sweep.dir=s3://a:b@bucket/x"]),
    "training rows in a bucket": Wrong(CONFIG, ["data.train=gs://bucket/a.csv", "yet"], ["data.train=gs://bucket/a.csv"]),
    "training rows as a file's URI": Wrong(CONFIG, ["data.train=file:///a/b.csv", "such as data.train=/a/b.csv"], ["data.train=file:///a/b.csv"]),
    "validation rows at an address": Wrong(CONFIG, ["data.validation=https://a.b/c.csv"], ["data.validation=https://a.b/c.csv"]),
    "test rows of the hub as a file": Wrong(CONFIG, ["data.test=hf://datasets/a/b.csv"], ["data.test=hf://datasets/a/b.csv"]),
    "a model in a bucket": Wrong(CONFIG, ["model.path=s3://bucket/model"], ["model.path=s3://bucket/model"]),
    "pairs in a bucket": Wrong(CONFIG, ["bias.pairs_file=s3://b/p.csv"], ["bias.pairs_file=s3://b/p.csv"]),
    "a trial over several GPUs in a pack": Wrong(CONFIG, ["resources.gpus_per_trial=2", "engine=hf", "one device"], ["resources.gpus_per_trial=2"]),
    "a trial over one GPU and a half": Wrong(CONFIG, ["resources.gpus_per_trial=1.5", "whole GPUs", "0.5"], ["engine=hf", "resources.gpus_per_trial=1.5"]),
    "a trial over several CPU processes in a pack": Wrong(CONFIG, ["resources.workers_per_trial=2", "engine=hf"], ["resources.workers_per_trial=2", "resources.gpus_per_trial=0"]),
    "more processes than GPUs": Wrong(CONFIG, ["resources.workers_per_trial=4", "gpus_per_trial=2", "or 0"], ["engine=hf", "resources.workers_per_trial=4", "resources.gpus_per_trial=2"]),
    "processes without a number of GPUs": Wrong(CONFIG, ["resources.workers_per_trial=2", "gpus_per_trial=null"], ["engine=hf", "resources.workers_per_trial=2"]),
    "one process over two GPUs": Wrong(CONFIG, ["resources.workers_per_trial=1", "one GPU"], ["engine=hf", "resources.workers_per_trial=1", "resources.gpus_per_trial=2"]),
    "shards on one device": Wrong(CONFIG, ["engine.sharding=fsdp", "there is one", "gpus_per_trial=2"], ["engine=hf", "engine.sharding=fsdp"]),
    "shards of a quantised model": Wrong(CONFIG, ["engine.sharding=fsdp", "precision=nf4", "engine.sharding=ddp"], ["engine=hf", "engine.sharding=fsdp", "resources.gpus_per_trial=2", "precision=nf4"]),
    "shards under DoRA": Wrong(CONFIG, ["engine.sharding=fsdp", "lora.dora=true", "engine.sharding=ddp"], ["engine=hf", "engine.sharding=fsdp", "resources.gpus_per_trial=2", "lora.dora=true"]),
    "a device map": Wrong(CONFIG, ["model.device_map", "one GPU at a time", "engine=hf resources.gpus_per_trial=2"], ["+model.device_map=auto"]),
    "no trials": Wrong(CONFIG, ["search.trials=0", "at least 1"], ["search.trials=0"]),
    "a name that leaves the folder": Wrong(CONFIG, ["sweep.name", "letters, digits"], ["sweep.name=../up"]),
    "an unknown baseline": Wrong(CONFIG, ["fewshot", "few_shot"], ["baselines=[fewshot]"]),
    "a start that is not in the space": Wrong(CONFIG, ["search.start_from[0]", "lora.rank"], ["search.start_from=[{lora.rank: 5}]"]),
    "an unknown metric": Wrong(CONFIG, ["objective.terms.quality.metric", "macro_f1"], ["objective.terms.quality.metric=f1"]),
}  # fmt: skip


def long_question(here: Path) -> None:
    (here / "model" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }} </s> {% endfor %}", encoding="utf-8"
    )
    turns = [{"role": "user", "content": "the apple " * 5000}, ANSWER]
    (here / "train.jsonl").write_text(2 * (json.dumps({"messages": turns}) + "\n"))


def test_the_table_holds_forty_kinds_of_wrong_input_and_more():
    assert len(WRONG) >= 40


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_input_is_told_in_one_message_at_once(name, refused, here, tiny_models):
    wrong = WRONG[name]
    if "model.path=model" in wrong.overrides:
        shutil.copytree(tiny_models["llama"], here / "model")
    wrong.prepare(here)
    began = time.process_time()
    said = refused(wrong.status, wrong.words, *wrong.overrides, command=wrong.command)
    assert time.process_time() - began < 5
    assert said.startswith("lorasweep: ")
    assert said.count("\n") == 1


def test_no_space_left_is_told_and_leaves_nothing(refused, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "sweep.yaml")

    monkeypatch.setattr(os, "fsync", full)
    refused(FOLDER, ["sweep.yaml", "No space left on device", "sweep.dir="], command="trial")


@pytest.mark.parametrize(
    "command",
    [
        "report runs/a --out", "export runs/a --to", "wandb pull a/b --to", "run --config-dir",
    ],
)  # fmt: skip
def test_a_path_on_the_command_line_may_be_no_uri(command, here, capsys):
    words = command.format("s3://bucket/x").split() if "{}" in command else [*command.split(), "s3://bucket/x"]
    assert cli.main(words) == CONFIG
    assert "s3://bucket/x: expected the path of a file or folder" in capsys.readouterr().err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        "rank {}", "rank {} runs/a", "status {}", "resume {}", "stop {}", "report {}", "compare {} runs/a",
        "export {} --to x", "finalize {}", "breakdown {}", "wandb report {}", "enqueue {} lora.rank=8",
    ],
)  # fmt: skip
def test_a_sweep_in_a_bucket_whose_store_does_not_answer_is_told(command, here, capsys, monkeypatch):
    monkeypatch.setenv("LORASWEEP_STAGING", str(here.parent / "staging"))
    uri = "s3://bucket/runs/a?endpoint_override=127.0.0.1:1&scheme=http"
    assert cli.main([uri if word == "{}" else word for word in command.split()]) == FOLDER
    assert "the store does not answer" in " ".join(capsys.readouterr().err.split())
    assert list(here.iterdir()) == []


def test_what_is_no_path_may_be_a_uri(tiny):
    composed = compose(tiny("llama", "tracking=mlflow", "tracking.uri=http://127.0.0.1:5000"))
    assert composed.config.tracking.uri == "http://127.0.0.1:5000"


@pytest.mark.parametrize("command", ["run", "trial"])
def test_a_cache_that_cannot_be_written_is_told(command, refused, monkeypatch):
    monkeypatch.setenv("LORASWEEP_CACHE", "/proc/lorasweep")  # where root may not write either
    refused(FETCH, ["/proc/lorasweep", "LORASWEEP_CACHE"], "model=smollm2", "model.path=null", command=command)


def test_code_that_comes_with_a_model_is_not_run(refused, here, tiny_models):
    shutil.copytree(tiny_models["llama"], here / "model")
    own_code(here / "model")
    refused(MODEL, ["model", "cannot be loaded"], "model.path=model", command="trial")
    assert not (here / "model" / "ran").exists()


def test_bias_of_a_classifier_cannot_be_measured(refused):
    refused(CONFIG, ["bias=none", "task=completion"], "task=classification", "bias.crows_pairs=10")


# --- this machine, and the folder


@pytest.mark.parametrize("override", ["precision=nf4", "precision=choice(fp32,nf4)"])
def test_a_precision_that_this_machine_cannot_do(override, refused, monkeypatch):
    from trainer.models import base_model

    fault = base_model.precision_fault
    monkeypatch.setattr(
        base_model, "precision_fault", lambda p, device: "no kernels" if p == "nf4" else fault(p, device)
    )
    said = refused(HARDWARE, ["cannot do", "nf4", "fp32"], override, command="trial")
    assert "int8" in said


@pytest.mark.parametrize("command", ["run", "trial"])
def test_a_folder_that_cannot_be_written(command, refused, here):
    (here / "file").write_text("no folder")
    refused(FOLDER, ["file", "cannot be written", "sweep.dir="], "sweep.dir=file/runs", command=command)


@pytest.mark.parametrize("command", ["run", "trial"])
def test_a_folder_that_holds_something_else(command, refused, here):
    (here / "runs" / "mine").mkdir(parents=True)
    (here / "runs" / "mine" / "thesis.tex").write_text("")
    refused(FOLDER, ["runs/mine", "is no sweep", "sweep.name="], "sweep.name=mine", command=command)


@pytest.mark.parametrize("command", [["rank", "runs/x"], ["resume", "runs/x"], ["export", "runs/x", "--to", "out"]])
def test_a_sweep_that_is_not_there(command, here, capsys):
    (here / "runs" / "y").mkdir(parents=True)
    (here / "runs" / "y" / "sweep.yaml").write_text("")
    assert cli.main(command) == FOLDER
    said = capsys.readouterr().err
    assert "runs/x: no sweep here" in said
    assert "Sweeps beside it: y" in said


@pytest.mark.parametrize("command", [["rank", "runs/y"], ["resume", "runs/y"], ["export", "runs/y", "--to", "out"]])
@pytest.mark.parametrize("content", ["", "format_version: [", "format_version: 99", "[]", "format_version: 1"])
def test_a_damaged_sweep_yaml(command, content, here, capsys):
    (here / "runs" / "y").mkdir(parents=True)
    (here / "runs" / "y" / "sweep.yaml").write_text(content)
    assert cli.main(command) == FOLDER
    said = capsys.readouterr().err
    assert "sweep.yaml" in said
    assert "defect" not in said


@pytest.mark.parametrize("override", ["lora.rank=4", "task=classification", "train.max_steps=99", "sweep.seed=1"])
def test_resume_refuses_what_would_change_the_trials(override, here, tiny, capsys):
    from analysis.folder import SweepFolder
    from sweeps.compose.compose import compose
    from sweeps.store.manifest import make_manifest, write_manifest

    composed = compose(tiny("llama"))
    write_manifest(SweepFolder("runs/y"), make_manifest(composed, {"fingerprint": "", "labels": []}, []))
    assert cli.main(["resume", "runs/y", override]) == CONFIG
    said = capsys.readouterr().err
    assert f"'{override.split('=')[0]}' cannot change" in said
    assert "search.*" in said


# --- what only Ray and the workers can tell


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "nonsense"])
def test_a_cluster_that_is_not_there(address, lorasweep, tiny, tmp_path):
    command = lorasweep(tmp_path)
    done = command("run", *tiny("llama", f"ray.address={address}"))
    assert done.returncode == HARDWARE, done.stderr
    assert f"ray.address={address}: cannot connect" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()


def test_what_a_worker_finds_wrong_is_told_like_the_rest(lorasweep, tiny, tiny_models, tmp_path):
    shutil.copytree(tiny_models["llama"], tmp_path / "model")
    own_code(tmp_path / "model")
    command = lorasweep(tmp_path)
    done = command("run", *tiny("llama", "model.path=model"))
    assert done.returncode == MODEL, done.stderr
    assert done.stderr.startswith("lorasweep: ")
    assert "cannot be loaded for task=completion" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "RayTaskError" not in done.stderr
    assert not (tmp_path / "model" / "ran").exists()
    assert not (tmp_path / "runs").exists()
    assert command.processes() == []
