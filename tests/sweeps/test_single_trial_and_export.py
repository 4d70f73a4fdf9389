"""One configuration without Ray, and what comes out of it for plain PEFT and plain transformers."""

import json
import shutil

import pytest
import ray
import yaml

from analysis.folder import State, Status, SweepFolder
from sweeps import cli

LABELS = ["bird", "fruit", "metal"]


@pytest.fixture(scope="module", params=["completion", "classification"])
def trial(request, tiny, tmp_path_factory):
    """A finished ``lorasweep trial`` of a task: task, the folder it ran in, its sweep folder."""
    task = request.param
    where = tmp_path_factory.mktemp(task)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        patch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray was started"))
        model = "llama" if task == "completion" else "bert"
        overrides = [f"task={task}", "optim.lr=5e-3", "lora.rank=4", "precision=fp32", "sweep.name=one"]
        assert cli.main(["trial", *tiny(model, *overrides)]) == 0
    return task, where, SweepFolder(where / "runs" / "one")


@pytest.fixture
def called(trial, monkeypatch, capsys):
    """Runs a command in the folder of the trial."""
    monkeypatch.chdir(trial[1])
    capsys.readouterr()

    def call(*arguments: str):
        code = cli.main(list(arguments))
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return code, said.out, said.err

    return call


def automatic(task):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForCausalLM if task == "completion" else AutoModelForSequenceClassification


def base_model(task, tiny_models):
    import torch

    torch.manual_seed(1)  # a classifier's own head is random, and replaced by the adapter's
    if task == "completion":
        return automatic(task).from_pretrained(tiny_models["llama"])
    return automatic(task).from_pretrained(tiny_models["bert"], num_labels=len(LABELS))


def logits(model, folder):
    import torch
    from transformers import AutoTokenizer

    batch = AutoTokenizer.from_pretrained(folder)("the apple and a plum", return_tensors="pt")
    with torch.no_grad():
        return model.eval()(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


def test_a_lone_trial_leaves_a_folder_like_a_sweep(trial, called):
    task, _, folder = trial
    files = folder.trial("t0000")
    assert files.read_status() == Status(State.COMPLETED, "", 8)
    assert [(row.step, row.final) for row in files.read_metrics()][:2] == [(2, False), (8, False)]
    assert files.read_metrics()[-1].final
    assert yaml.safe_load(files.config_file.read_text())["task"]["name"] == task
    assert folder.baseline("zero_shot").read_status().state is State.COMPLETED
    code, out, _ = called("rank", "runs/one")
    assert code == 0
    assert "t0000" in out
    assert "zero_shot" in out
    assert ("perplexity" in folder.leaderboard_file.read_text()) == (task == "completion")


def test_a_lone_trial_is_not_gone_on_with_nor_run_over(trial, called, tiny):
    code, _, err = called("resume", "runs/one", "search.trials=3")
    assert code == 5
    assert "a single trial" in err
    code, _, err = called("trial", *tiny("llama", "sweep.name=one"))
    assert code == 5
    assert "already holds a sweep" in err


def test_the_exported_adapter_is_the_trials_own(trial, called, tiny_models):
    from peft import PeftModel

    task, where, folder = trial
    code, out, err = called("export", "runs/one", "--to", "adapter")
    assert (code, err) == (0, "")
    exported = PeftModel.from_pretrained(base_model(task, tiny_models), where / "adapter")
    own = PeftModel.from_pretrained(base_model(task, tiny_models), folder.trial("t0000").adapter_dir)
    name = "llama" if task == "completion" else "bert"
    given = logits(exported, tiny_models[name])
    assert given.equal(logits(own, tiny_models[name]))
    assert task == "classification" or not given.equal(logits(base_model(task, tiny_models), tiny_models[name]))
    shown = pasted(out)
    assert logits(shown["model"], tiny_models[name]).equal(given)


def pasted(out: str) -> dict[str, object]:
    """What the lines that ``export`` prints define, run as a user would paste them."""
    shown: dict[str, object] = {}
    exec("\n".join(line.removeprefix("  ") for line in out.split("Load it:")[1].splitlines()), shown)
    return shown


@pytest.fixture(scope="module")
def without_padding(tiny_models, tmp_path_factory):
    """The tiny llama with an id of padding that no embedding has in its config, and none in its tokenizer."""
    folder = tmp_path_factory.mktemp("no padding") / "llama"
    shutil.copytree(tiny_models["llama"], folder)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text())
        settings.pop("pad_token", None)
        if name == "config.json":
            settings["pad_token_id"] = None
        (folder / name).write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("model", "task", "precision"),
    [
        ("without padding", "classification", "fp32"),
        ("without padding", "classification", "nf4"),
        ("bert", "classification", "nf4"),
        ("bert", "classification", "int8"),
        ("llama", "completion", "nf4"),
        ("llama", "completion", "int8"),
        ("llama", "completion", "bf16"),
    ],
)
def test_the_lines_that_export_prints_give_the_recorded_predictions_in_one_batch(
    model, task, precision, tiny, without_padding, tmp_path, monkeypatch, capsys
):
    import torch
    from transformers import AutoTokenizer

    monkeypatch.chdir(tmp_path)
    overrides = tiny("bert" if model == "bert" else "llama", f"task={task}", f"precision={precision}", "sweep.name=one")
    if model == "without padding":
        overrides.append(f"model.path='{without_padding}'")
    learns = ["optim.lr=2e-2", "train.max_steps=24", "train.rungs=[24]", "train.batch_size=12", "baselines=[]"]
    assert cli.main(["trial", *overrides, *learns]) == 0
    capsys.readouterr()
    assert cli.main(["export", "runs/one", "t0000", "--to", "adapter"]) == 0
    shown = pasted(capsys.readouterr().out)
    card = json.loads((tmp_path / "adapter" / "lorasweep.json").read_text())
    assert card["precision"] == precision
    assert card["dtype"] == ("bfloat16" if precision == "bf16" else "float32")
    tuned = shown["model"]
    kinds = {type(module).__name__ for module in tuned.modules()}
    assert {"nf4": "Linear4bit", "int8": "Linear8bitLt"}.get(precision, "Linear") in kinds
    assert (precision in ("nf4", "int8")) == bool(kinds & {"Linear4bit", "Linear8bitLt"})
    items = SweepFolder(tmp_path / "runs" / "one").trial("t0000").read_items("task", "validation", 24)
    recorded = torch.tensor(items["logprobs"])
    with open(tiny("llama")[4].removeprefix("data.validation=")) as file:
        texts = [line.split(",")[0] for line in file.read().splitlines()[1:]]
    order = [int(item_id.split("-")[1]) for item_id in items["item_id"]]
    texts = [texts[i] for i in order]
    near = 0.05 if precision == "bf16" else 1e-4
    with torch.no_grad():
        if task == "classification":
            tokenizer = shown["tokenizer"]
            assert tokenizer.pad_token_id == tuned.config.pad_token_id == card["pad_token_id"] is not None
            batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
            assert not batch.attention_mask.all(), "rows are padded"
            scores = tuned(**batch).logits.float().log_softmax(-1)
            assert [tuned.config.id2label[int(i)] for i in scores.argmax(1)] == items["prediction"]
        else:
            tokenizer = AutoTokenizer.from_pretrained(tuned.peft_config["default"].base_model_name_or_path)
            labels = [tokenizer(f" {label}", add_special_tokens=False).input_ids[0] for label in LABELS]
            prompts = [tokenizer(f"{text}\nLabel:", return_tensors="pt").input_ids for text in texts]
            scores = torch.stack([tuned(ids).logits[0, -1, labels].float().log_softmax(-1) for ids in prompts])
        torch.testing.assert_close(scores, recorded, atol=near, rtol=0, check_dtype=False)


def test_the_merged_model_of_a_decoder_classifies_a_batch(tiny, without_padding, tmp_path, monkeypatch, capsys):
    import torch

    monkeypatch.chdir(tmp_path)
    more = ("task=classification", "sweep.name=one", f"model.path='{without_padding}'", "precision=nf4", "baselines=[]")
    assert cli.main(["trial", *tiny("llama", *more)]) == 0
    capsys.readouterr()
    assert cli.main(["export", "runs/one", "t0000", "--to", "merged", "--merge"]) == 0
    out = capsys.readouterr().out
    assert "trained at precision=nf4" in out
    model = pasted(out)["model"].eval()
    assert model.config.pad_token_id == 1
    with torch.no_grad():
        one, two = torch.tensor([[0, 5, 6, 7]]), torch.tensor([[0, 9, 1, 1]])
        both = model(torch.cat([one, two])).logits
        assert torch.allclose(both, torch.cat([model(one).logits, model(two[:, :2]).logits]), atol=1e-5)


def test_the_merged_model_gives_what_base_and_adapter_give(trial, called, tiny_models):
    import torch
    from peft import PeftModel

    task, where, folder = trial
    code, out, err = called("export", "runs/one", "t0000", "--to", "merged", "--merge")
    assert (code, err) == (0, "")
    name = "llama" if task == "completion" else "bert"
    pair = PeftModel.from_pretrained(base_model(task, tiny_models), folder.trial("t0000").adapter_dir)
    merged = automatic(task).from_pretrained(where / "merged")
    torch.testing.assert_close(logits(merged, where / "merged"), logits(pair, tiny_models[name]), rtol=1e-4, atol=1e-4)
    assert not list((where / "merged").glob("adapter*"))
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    if task == "classification":
        assert [merged.config.id2label[i] for i in range(3)] == LABELS
    assert f"AutoModelFor{'CausalLM' if task == 'completion' else 'SequenceClassification'}" in out


def test_the_export_says_what_one_needs_to_know_to_use_it(trial, called):
    task, where, folder = trial
    called("export", "runs/one", "--to", "with card")
    card = json.loads((where / "with card" / "lorasweep.json").read_text())
    assert (card["trial_id"], card["task"], card["labels"]) == ("t0000", task, LABELS)
    assert card["prompt"] == ("{text}\nLabel:" if task == "completion" else None)
    assert card["metrics"] == folder.trial("t0000").read_metrics()[-1].metrics


def test_a_trial_that_is_not_there(trial, called):
    code, _, err = called("export", "runs/one", "t0009", "--to", "nothing")
    assert code == 5
    assert "no trial 't0009'" in err
    assert "t0000" in err
    assert not (trial[1] / "nothing").exists()


def test_a_trial_id_cannot_leave_the_sweep_folder(trial, called):
    code, _, err = called("export", "runs/one", "../../x", "--to", "nothing")
    assert code == 5
    assert "is not a trial id" in err


def test_a_folder_in_use_is_not_written_into(trial, called):
    _, where, _ = trial
    (where / "used").mkdir(exist_ok=True)
    (where / "used" / "mine.txt").write_text("mine")
    code, _, err = called("export", "runs/one", "--to", "used")
    assert code == 5
    assert "there is something already" in err
    assert [path.name for path in (where / "used").iterdir()] == ["mine.txt"]


def test_a_trial_without_an_adapter_says_how_it_ended(trial, called):
    _, where, folder = trial
    broken = where / "runs" / "two"
    shutil.copytree(folder.root, broken, dirs_exist_ok=True)
    files = SweepFolder(broken).trial("t0000")
    shutil.rmtree(files.adapter_dir, ignore_errors=True)
    files.write_status(Status(State.DIVERGED, "the loss was nan in step 3", 3))
    code, _, err = called("export", "runs/two", "t0000", "--to", "nothing")
    assert code == 5
    assert "diverged: the loss was nan in step 3" in err
    code, _, err = called("export", "runs/two", "--to", "nothing")
    assert code == 5
    assert "no trial has completed" in err
    assert not (where / "nothing").exists()


@pytest.mark.parametrize("merge", [[], ["--merge"]])
def test_a_torn_adapter_is_not_exported(merge, trial, called):
    _, where, folder = trial
    shutil.copytree(folder.root, where / "runs" / "torn", dirs_exist_ok=True)
    weights = where / "runs" / "torn" / "trials" / "t0000" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    before = sorted(path.name for path in where.iterdir())
    code, _, err = called("export", "runs/torn", "t0000", "--to", "half", *merge)
    assert code == 4, err
    assert "adapter_model.safetensors: not a complete safetensors file" in err
    assert sorted(path.name for path in where.iterdir()) == before


def test_an_export_to_a_full_disk_leaves_nothing(trial, called, monkeypatch):
    def full(source, target, **options):
        target.mkdir()
        (target / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    before = sorted(path.name for path in trial[1].iterdir())
    code, _, err = called("export", "runs/one", "t0000", "--to", "half")
    assert code == 5
    assert "half: cannot be written (No space left on device)" in err
    assert sorted(path.name for path in trial[1].iterdir()) == before
