"""Input that cannot be run: what the command line says, its exit status, and that nothing is left behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps import cli

CONFIG, DATA, MODEL, FOLDER, HARDWARE = 2, 3, 4, 5, 7  # exit statuses


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


# --- data


def test_a_file_that_is_not_there(refused, here):
    rows(here / "train.csv", *GOOD)
    refused(DATA, ["data.train=", "trian.csv: no such file", "'train.csv'"], "data.train=trian.csv")


def test_a_file_without_content(refused, here):
    (here / "empty.csv").touch()
    refused(DATA, ["empty.csv", "empty (0 bytes)", "data.validation"], "data.validation=empty.csv")


def test_a_file_with_a_header_only(refused, here):
    rows(here / "head.csv")
    refused(DATA, ["head.csv", "no rows", "data.train"], "data.train=head.csv")


def test_a_folder_instead_of_a_file(refused, here):
    (here / "data").mkdir()
    refused(DATA, ["data.train=", "/data is a directory"], "data.train=data")


def test_a_file_that_is_not_text(refused, here):
    (here / "train.csv").write_bytes(b"text,label\nthe caf\xe9,fruit\n")
    refused(DATA, ["train.csv, line 2", "not UTF-8", "iconv"], "data.train=train.csv")


def test_a_file_of_another_format(refused, here):
    (here / "train.csv").write_bytes(b"PAR1" + bytes(20))
    refused(DATA, ["train.csv", "Parquet", "data=parquet"], "data.train=train.csv")


def test_a_column_that_is_not_there(refused):
    refused(DATA, ["no column 'labels'", "data.label", "Did you mean 'label'?"], "data.label=labels")


def test_a_class_with_one_row(refused, here):
    rows(here / "train.csv", *GOOD, "the owl,bird")
    refused(DATA, ["train.csv, line 6", "'bird' has one training row"], "data.train=train.csv")


def test_one_class_only(refused, here):
    rows(here / "train.csv", *GOOD[:2])
    refused(DATA, ["train.csv", "every row has the label 'fruit'"], "data.train=train.csv")


def test_labels_that_training_does_not_have(refused, here):
    rows(here / "validation.csv", *GOOD, "the oak,tree")
    refused(DATA, ["validation.csv, line 6", "no training row has: 'tree'"], "data.validation=validation.csv")


def test_a_row_without_a_label(refused, here):
    rows(here / "train.csv", *GOOD, "the plum,")
    refused(DATA, ["train.csv, line 6", "'label' (data.label) is empty"], "data.train=train.csv")


def test_no_data_at_all(refused):
    refused(CONFIG, ["data.train", "data.train=FILE.csv"], "data.train=null")


# --- model


def without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"<html>404 Not Found</html>" * 9)


def own_code(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "evil", "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pickled, ["weights are pickled (pytorch_model.bin)", "can run code"]),
        (cut_short, ["model.safetensors", "not a complete safetensors file", "copy it again"]),
        (garbage, ["model.safetensors", "not a complete safetensors file"]),
        (without("tokenizer.json"), ["no tokenizer", "save_pretrained"]),
        (without("config.json"), ["no config.json", "It holds: "]),
        (without("model.safetensors"), ["no *.safetensors weights", "It holds: "]),
        (lambda folder: (folder / "config.json").write_text("{"), ["config.json", "not valid JSON"]),
    ],
    ids=["pickled", "cut short", "garbage", "no tokenizer", "no config", "no weights", "bad config"],
)
def test_a_model_folder_that_cannot_be_used(change, words, refused, here, tiny_models):
    shutil.copytree(tiny_models["llama"], here / "model")
    change(here / "model")
    refused(MODEL, words, "model.path=model")


def test_a_model_folder_that_is_not_there(refused):
    refused(MODEL, ["model.path=", "nowhere", "no such folder"], "model.path=nowhere")


def test_no_model_path(refused):
    refused(CONFIG, ["model.path"], "model.path=null")


def test_targets_that_the_model_does_not_have_and_those_it_has(refused):
    words = ["lora.targets=q_proj+v_porj", "no linear module 'v_porj'", "'v_proj'", "gate_proj", "attention"]
    refused(MODEL, words, "lora.targets=q_proj+v_porj")


def test_searched_targets_that_the_model_does_not_have(refused):
    words = ["lora.targets=query", "no linear module 'query'"]
    refused(MODEL, words, "lora.targets=choice(q_proj,query)")


def test_code_that_comes_with_a_model_is_not_run(refused, here, tiny_models):
    shutil.copytree(tiny_models["llama"], here / "model")
    own_code(here / "model")
    refused(MODEL, ["model", "cannot be loaded"], "model.path=model", command="trial")
    assert not (here / "model" / "ran").exists()


# --- config and space


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lora.rank=0", ["lora.rank=0", "at least 1", "override 'lora.rank=0'"]),
        ("lora.rank=choice(4,-8)", ["lora.rank", "-8", "at least 1"]),
        ("lora.rnak=8", ["'lora.rnak' is not a config key", "'lora.rank'"]),
        ("+space.lora.ranks.choices=[2]", ["lora.ranks", "'lora.rank'"]),
        ("precision=fp13", ["precision", "fp13", "fp32, bf16, int8, nf4"]),
        ("optim.lr=tag(log,interval(0,1e-3))", ["optim.lr"]),
        ("train.rungs=[2,4]", ["train.rungs=[2, 4]", "train.max_steps=8"]),
        ("task=regression", ["task=regression", "classification", "completion"]),
        ("search.trials=0", ["search.trials=0", "at least 1"]),
        ("sweep.name=../up", ["sweep.name", "letters, digits"]),
        ("baselines=[fewshot]", ["fewshot", "few_shot"]),
        ("search.start_from=[{lora.rank: 5}]", ["search.start_from[0]", "lora.rank"]),
        ("objective.terms.quality.metric=f1", ["objective.terms.quality.metric", "macro_f1"]),
    ],
)
def test_a_config_that_cannot_be_run(override, words, refused):
    refused(CONFIG, words, override)


def test_bias_of_a_classifier_cannot_be_measured(refused):
    refused(CONFIG, ["bias=none", "task=completion"], "task=classification", "bias.crows_pairs=10")


# --- this machine, and the folder


@pytest.mark.parametrize("override", ["precision=nf4", "precision=choice(fp32,nf4)"])
def test_a_precision_that_this_machine_cannot_do(override, refused, monkeypatch):
    from trainer import models

    fault = models.precision_fault
    monkeypatch.setattr(models, "precision_fault", lambda p, device: "no kernels" if p == "nf4" else fault(p, device))
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
    from sweeps.compose import compose
    from sweeps.manifest import make_manifest, write_manifest

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
