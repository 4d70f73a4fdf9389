"""What the model and the data decide where the user did not: task, validation rows, columns."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.errors import ConfigError, DataError
from sweeps.compose.compose import Composed, compose
from trainer.config import ModelConfig, SplitConfig
from trainer.data.dataset import load_dataset
from trainer.models.model_kind import encoder_name

Rows = Callable[..., str]


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """Writes a CSV of a header and rows; gives its path."""

    def write(header: Sequence[str], *lines: Sequence[object], name: str = "rows.csv") -> str:
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([header, *lines])
        return str(tmp_path / name)

    return write


@pytest.fixture
def tickets(rows: Rows) -> str:
    return rows(["text", "label"], *[(f"words of row {n}", "ab"[n % 2]) for n in range(20)])


MINILM = ["model=minilm", "data=csv"]


def test_an_encoder_classifies_and_a_decoder_completes(tickets: str, tiny_models: dict[str, Path]) -> None:
    composed = compose([*MINILM, f"data.train={tickets}"])
    assert composed.config.task.name == "classification"
    assert "task=classification: all-MiniLM-L6-v2 is an encoder." in composed.notes
    assert composed.config.bias.crows_pairs == composed.config.bias.stereoset == 0  # what depends on the task follows
    assert "crows" not in {term.metric for term in composed.config.objective.terms.values()}
    assert composed.config.sweep.name == "classification-minilm-rows"
    for kind, task in (("bert", "classification"), ("llama", "completion"), ("gpt2", "completion")):
        local = ["model=local", f"model.path={tiny_models[kind]}", "data=csv", f"data.train={tickets}"]
        assert compose(local).config.task.name == task
    assert compose([]).config.task.name == "completion"


def test_a_task_that_was_chosen_stays(tickets: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    llama = ["model=local", f"model.path={tiny_models['llama']}", "data=csv", f"data.train={tickets}"]
    assert compose([*llama, "task=classification"]).config.task.name == "classification"
    with pytest.raises(ConfigError, match=r"all-MiniLM-L6-v2 is an encoder.*Use task=classification, or a decoder"):
        compose([*MINILM, f"data.train={tickets}", "task=completion"])
    with pytest.raises(ConfigError, match=r"is an encoder.*override 'task\.name=completion'"):
        compose([*MINILM, f"data.train={tickets}", "task.name=completion"])
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /task: completion\n  - override /model: minilm\n"
    )
    with pytest.raises(ConfigError, match=r"is an encoder.*conf/task/completion\.yaml, line 3"):
        compose(["experiment=mine", "data=csv", f"data.train={tickets}"], str(tmp_path))


def test_a_prompt_is_refused_where_nothing_reads_it(tickets: str) -> None:
    with pytest.raises(ConfigError, match=r"task\.prompt is not used by task=classification"):
        compose([*MINILM, f"data.train={tickets}", 'task.prompt="{text}"'])


@pytest.mark.parametrize(
    ("settings", "encodes"),
    [
        ({"model_type": "bert"}, True),
        ({"model_type": "deberta-v2", "architectures": ["DebertaV2ForMaskedLM"]}, True),
        ({"model_type": "bert", "architectures": ["BertForSequenceClassification"]}, True),
        ({"model_type": "bert", "architectures": ["BertLMHeadModel"]}, False),
        ({"model_type": "roberta", "is_decoder": True}, False),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, False),
        ({"model_type": "modernbert-decoder", "architectures": ["ModernBertDecoderForCausalLM"]}, False),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, False),
        ({}, False),
        ([], False),
    ],
)
def test_config_json_says_what_is_an_encoder(settings: object, encodes: bool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert bool(encoder_name(ModelConfig("local", path=str(tmp_path)), network=False)) is encodes


def test_a_hub_s_model_is_looked_up_in_the_hub_s_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(tmp_path / "config.json"))
    assert encoder_name(ModelConfig("hub", name="owner/some-bert"), network=False) == "some-bert"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    assert encoder_name(ModelConfig("hub", name="owner/some-bert"), network=True) == ""  # HF_HUB_OFFLINE=1 in tests


def test_a_fifth_ranks_the_trials_where_no_validation_rows_are_named(tickets: str) -> None:
    composed = compose([*MINILM, f"data.train={tickets}"])
    assert composed.config.data.split.validation == 0.2
    assert composed.unresolved()["data"]["split"]["validation"] == 0.2  # what --cfg job prints
    assert any(note.startswith("data.split.validation=0.2: ") for note in composed.notes)
    assert compose([*MINILM, f"data.train={tickets}", "data.split.test=0.1"]).config.data.split.validation == 0.2
    assert compose([*MINILM, f"data.train={tickets}", "data.split.validation=0.4"]).config.data.split.validation == 0.4
    named = compose([*MINILM, f"data.train={tickets}", f"data.validation={tickets}"])
    with pytest.raises(ConfigError, match=r"needs data\.validation"):  # a typed 0 stays 0
        compose([*MINILM, f"data.train={tickets}", "data.split.validation=0"])
    for other in (named, compose([])):
        assert other.config.data.split.validation == 0.0
        assert not any("data.split" in note for note in other.notes)


def test_a_stored_sweep_is_not_filled_in_again(tickets: str) -> None:
    stored = compose([*MINILM, f"data.train={tickets}"]).unresolved()
    Path(tickets).write_text("other,columns\n")
    again = Composed.from_stored(stored, ["search.trials=20"])
    assert (again.config.task.name, again.config.data.split.validation) == ("classification", 0.2)


@pytest.mark.parametrize("model", ["minilm", "smollm2"])
def test_two_columns_of_other_names_are_told_by_their_values(model: str, rows: Rows) -> None:
    file = rows(["star rating", "review"], *[(n % 3, f"words of row {n}") for n in range(20)])
    composed = compose([f"model={model}", "data=csv", f"data.train={file}"])
    data = composed.config.data
    assert (data.schema, data.text, data.label) == ("label", "review", "star rating")
    assert any("data.text=review 'data.label=\"star rating\"': " in note for note in composed.notes)


def test_a_column_that_has_its_name_keeps_its_role(rows: Rows) -> None:
    lines = [(f"words of row {n}", "ab"[n % 2]) for n in range(20)]
    assert compose([*MINILM, f"data.train={rows(['text', 'topic'], *lines)}"]).config.data.label == "topic"
    with pytest.raises(DataError, match=r"no column 'label'.*'label|no column 'label'.*'text'"):
        compose([*MINILM, f"data.train={rows(['topic', 'text'], *lines)}"])  # the texts are not in 'text'
    with pytest.raises(DataError, match=r"no column 'topics'.*Type data\.label=topic"):
        compose([*MINILM, f"data.train={rows(['text', 'topic'], *lines)}", "data.label=topics"])


def test_more_columns_are_listed_with_what_to_type(rows: Rows) -> None:
    lines = [(n, f"words of row {n}", "ab"[n % 2]) for n in range(20)]
    for model in ("minilm", "smollm2"):
        file = rows(["id", "message", "category"], *lines)
        with pytest.raises(
            DataError, match=r"'id', 'message', 'category'.*Type data\.text=message data\.label=category"
        ):
            compose([f"model={model}", "data=csv", f"data.train={file}"])
    file = rows(["", "message", "category"], *lines)  # as pandas writes a table with its index
    assert compose([*MINILM, f"data.train={file}"]).config.data.text == "message"


def test_a_file_without_a_header_is_told(rows: Rows) -> None:
    with pytest.raises(DataError, match=r"'a' stands in the header and among the labels.*text,label"):
        compose([*MINILM, f"data.train={rows(*[(f'words of row {n}', 'ab'[n % 2]) for n in range(20)])}"])


def jsonl(path: Path, *rows: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.train={path}"


def test_sharegpt_rows_are_conversations(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "Rain in Lund?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Lund"}}'},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "It rains."},
    ]
    row = {"conversations": turns, "system": "Answer.", "tools": '[{"name": "weather"}]', "id": 1}
    composed = compose(["model=smollm2", "data=jsonl", jsonl(tmp_path / "rows.jsonl", row, row)])
    data = composed.config.data
    assert (data.schema, data.messages) == ("chat", "conversations")
    assert any("ShareGPT's" in note for note in composed.notes)
    first = load_dataset(replace(data, validation=data.train, split=SplitConfig(), allow_overlap=True)).train[0]
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Lund"}}}
    assert first.messages == (
        {"role": "system", "content": "Answer."},
        {"role": "user", "content": "Rain in Lund?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
    )
    assert first.tools == ({"name": "weather"},)


def test_alpaca_rows_are_completions_in_alpacas_prompt(tmp_path: Path) -> None:
    """The prompts are those of Stanford Alpaca's ``train.py``."""
    rows = [
        {"instruction": "Name a fruit.", "input": "", "output": "Apple"},
        {"instruction": "Say the plural.", "input": "pear", "output": "Pears"},
    ]
    data = compose(["model=smollm2", "data=jsonl", jsonl(tmp_path / "rows.jsonl", *rows)]).config.data
    bare, paired = load_dataset(replace(data, validation=data.train, split=SplitConfig(), allow_overlap=True)).train
    assert bare.text == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nName a fruit.\n\n### Response:\n"
    )
    assert paired.text == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a"
        " response that appropriately completes the request.\n\n### Instruction:\nSay the plural.\n\n### Input:\npear"
        "\n\n### Response:\n"
    )
    assert (bare.completion, paired.completion) == ("Apple", "Pears")


def test_preference_rows_are_refused_with_what_uses_them(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    given = jsonl(tmp_path / "rows.jsonl", row, {**row, "prompt": "p"})
    with pytest.raises(DataError, match=r"preference rows.*DPOTrainer.*data\.completion=chosen"):
        compose(["model=smollm2", "data=jsonl", given])
    assert compose(["model=smollm2", "data=jsonl", given, "data.schema=completion", "data.completion=chosen"])
    of_openai = jsonl(tmp_path / "openai.jsonl", {"input": {}, "preferred_output": [], "non_preferred_output": []})
    with pytest.raises(DataError, match=r"preferred_output and non_preferred_output are of preference rows"):
        compose(["model=smollm2", "data=jsonl", of_openai])


def test_columns_that_the_user_names_are_of_no_known_format(tmp_path: Path) -> None:
    row = {"instruction": "Name a fruit.", "output": "Apple"}
    given = jsonl(tmp_path / "rows.jsonl", row, {**row, "instruction": "Name two."})
    named = ["data.prompt=instruction", "data.completion=output"]
    data = compose(["model=smollm2", "data=jsonl", given, *named]).config.data
    assert (data.schema, data.template) == ("completion", None)


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        (["objective=single"], True),
        (["objective=balanced"], True),
        (["objective=single", "objective.terms.quality.metric=generate.json_f1"], False),
        (["experiment=function_calling"], False),
    ],
)
def test_what_references_decide_is_told_where_they_do(objective: list[str], told: bool, rows: Rows) -> None:
    file = rows(["prompt", "completion"], *[(f"words of row {n}", "yes") for n in range(20)])
    words = ["data=csv", f"data.train={file}", "bias=none", *objective]
    notes = " ".join(compose([*words, "data.schema=completion", "data.split.group=null"]).notes)
    assert ("eval.references=short" in notes) is told, notes
