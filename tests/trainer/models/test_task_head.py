"""The head of a classifier: the checkpoint's own where its labels are the data's; else a new one, and it is said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DistilBertConfig,
    LlamaConfig,
    ModernBertConfig,
    RobertaConfig,
)

from analysis.folder import TrialFolder
from tests.trainer.packs import CLOSE, alone, distance, drive, score, together
from trainer.baselines import score_baseline
from trainer.config import Baseline, TrialConfig
from trainer.device_cache import DeviceCache
from trainer.engines.hf_engine import HfEngine
from trainer.models.base_model import BaseModel, load_base
from trainer.models.lora import add_adapter, remove_adapter
from trainer.models.task_head import order_of

LABELS = ("bird", "fruit", "metal")  # of the data, as sorted
THEIRS = ("metal", "Fruit", "bird")
SIZES = {
    "vocab_size": 32, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1, "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 130,
    "initializer_range": 0.3,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "bert": lambda: BertConfig(**SIZES),
    "roberta": lambda: RobertaConfig(**SIZES),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=32, dim=32, n_layers=2, n_heads=4, hidden_dim=64, pad_token_id=2, initializer_range=0.3
    ),
    "modernbert": lambda: ModernBertConfig(**SIZES, cls_token_id=0, sep_token_id=1),
    "llama": lambda: LlamaConfig(**SIZES),
}


@pytest.fixture
def save(tiny_models: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """``save(kind, names)``: the folder of a random classifier of an architecture, with these names of its outputs."""

    def saved(kind: str, names: tuple[str, ...] | None, factory: Any = AutoModelForSequenceClassification) -> Path:
        torch.manual_seed(1)
        config = CONFIGS[kind]()
        if names:
            config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
        folder = tmp_path / kind
        factory.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_models["llama"]).save_pretrained(folder)
        return folder

    return saved


@pytest.fixture
def trial_of(make_trial: Callable[..., TrialConfig]) -> Callable[..., TrialConfig]:
    def make(folder: Path, **changes: Any) -> TrialConfig:
        trial = make_trial("bert", max_length=24, max_steps=4, rungs=[4], **changes)
        trial.model.path = str(folder)
        return trial

    return make


def loaded(trial: TrialConfig, precision: str = "fp32") -> BaseModel:
    return load_base(trial.model, precision, "classification", LABELS, torch.device("cpu"))


@pytest.mark.parametrize(
    ("own", "labels", "order"),
    [
        (("a", "b"), ("a", "b"), [0, 1]),
        (("b", "a"), ("a", "b"), [1, 0]),
        (("NEGATIVE", "Positive"), ("negative", "positive"), [0, 1]),
        (("B", "a", "A"), ("A", "B", "a"), [2, 0, 1]),  # exact where letter case tells them apart
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("2", "0", "1"), [2, 0, 1]),
        (("LABEL_0", "LABEL_1"), ("ham", "spam"), None),
        (("a", "b", "c"), ("a", "b"), None),
        (("a", "A"), ("a", "b"), None),
        (("a", "A"), ("a", "A"), [0, 1]),
    ],
)
def test_labels_fit_exactly_or_but_for_letter_case(
    own: tuple[str, ...], labels: tuple[str, ...], order: list[int] | None
) -> None:
    assert order_of(dict(enumerate(own)), labels) == order


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_head_whose_labels_fit_is_kept_in_the_order_of_the_data(
    kind: str,
    save: Callable[..., Path],
    trial_of: Callable[..., TrialConfig],
    tmp_path: Path,
) -> None:
    """Zero-shot, a slot and the reference engine, against plain transformers."""
    trial = trial_of(save(kind, THEIRS), lr=1e-9, rank=2)
    plain = AutoModelForSequenceClassification.from_pretrained(trial.model.path).eval()
    kept = DeviceCache(torch.device("cpu"))
    base = kept.base(trial)
    assert not base.fresh
    assert base.notes == ("the model's own head is kept: its labels are the data's labels (bird, fruit, metal)",)
    assert base.model.config.id2label == dict(enumerate(LABELS))

    row = score_baseline(kept, Baseline("zero_shot", trial), TrialFolder(tmp_path / "zero_shot"))
    runs = {"zero_shot": 0, "alone": 4, "pack": 4}  # folder → step of its final scoring
    alone(kept, [trial], tmp_path / "alone")
    together(kept, [trial], tmp_path / "pack")
    texts = {row.item_id: row.text for row in kept.dataset(trial).validation}
    tokenizer = AutoTokenizer.from_pretrained(trial.model.path)
    assert row.n_items == len(texts) == 30
    for name, step in runs.items():
        folder = tmp_path / name if name == "zero_shot" else tmp_path / name / "t0000"
        items = TrialFolder(folder).read_items("task", "validation", step)
        for item_id, predicted, recorded in zip(items["item_id"], items["prediction"], items["logprobs"], strict=True):
            with torch.no_grad():
                logits = plain(**tokenizer(texts[item_id], return_tensors="pt", return_token_type_ids=False)).logits[0]
            assert predicted == plain.config.id2label[int(logits.argmax())].lower()
            expected = logits.log_softmax(-1)[[2, 1, 0]]
            torch.testing.assert_close(torch.tensor(recorded), expected, atol=1e-5, rtol=0, check_dtype=False)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert", "llama"])
def test_a_kept_head_trains_alike_in_a_pack_and_alone_and_in_plain_peft(
    kind: str, save: Callable[..., Path], trial_of: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    trial, kept = trial_of(save(kind, THEIRS), lr=5e-3), DeviceCache(torch.device("cpu"))
    [one], [other] = alone(kept, [trial], tmp_path / "alone"), together(kept, [trial], tmp_path / "pack")
    assert distance(one, other) <= CLOSE
    again = together(kept, [trial], tmp_path / "again")
    assert distance(other, again[0]) == 0
    files = TrialFolder(tmp_path / "pack" / "t0000")
    base = AutoModelForSequenceClassification.from_pretrained(trial.model.path)
    model = PeftModel.from_pretrained(base, str(files.adapter_dir)).eval()
    items = files.read_items("task", "validation", 4)
    texts = {row.item_id: row.text for row in kept.dataset(trial).validation}
    tokenizer = AutoTokenizer.from_pretrained(trial.model.path)
    for item_id, recorded in zip(items["item_id"], items["logprobs"], strict=True):
        with torch.no_grad():
            batch = tokenizer(texts[item_id], return_tensors="pt", return_token_type_ids=False)
            expected = model(**batch).logits[0].log_softmax(-1)
        torch.testing.assert_close(torch.tensor(recorded), expected, atol=1e-4, rtol=0, check_dtype=False)


@pytest.mark.parametrize(
    ("names", "said", "fresh"),
    [
        (("joy", "anger", "fear"), "(joy, anger, fear) are not the data's labels", {"classifier"}),
        (("yes", "no"), "has 2 outputs (yes, no)", {"classifier"}),
        (None, "", {"classifier"}),
    ],
)
def test_a_head_that_does_not_fit_is_said_to_be_new(
    names: tuple[str, ...] | None,
    said: str,
    fresh: set[str],
    save: Callable[..., Path],
    trial_of: Callable[..., TrialConfig],
) -> None:
    base = loaded(trial_of(save("distilbert", names)))
    assert base.fresh == fresh
    assert base.heads == {"pre_classifier", "classifier"}
    [note] = base.notes
    assert said in note
    assert "new" in note


def test_an_encoder_without_pooler_and_head_trains_both_alike_in_both_engines(
    save: Callable[..., Path], trial_of: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    """A masked language model: ``bert.pooler`` has no weights, and lies within the backbone."""
    trial = trial_of(save("bert", None, AutoModelForMaskedLM), lr=5e-3)
    kept = DeviceCache(torch.device("cpu"))
    base = kept.base(trial)
    assert base.heads == base.fresh == {"bert.pooler", "classifier"}
    [one], [other] = alone(kept, [trial], tmp_path / "alone"), together(kept, [trial], tmp_path / "pack")
    assert distance(one, other) <= CLOSE
    assert "base_model.model.bert.pooler.dense.weight" in one
    # the pooler that was drawn when the model was loaded is another one each time: no trial may depend on it
    torch.manual_seed(99)
    [elsewhere] = together(DeviceCache(torch.device("cpu")), [trial], tmp_path / "elsewhere")
    assert distance(other, elsewhere) == 0
    files = TrialFolder(tmp_path / "pack" / "t0000")
    torch.manual_seed(5)
    plain = AutoModelForSequenceClassification.from_pretrained(trial.model.path, num_labels=3)
    model = PeftModel.from_pretrained(plain, str(files.adapter_dir)).eval()
    items = files.read_items("task", "validation", 4)
    text = {row.item_id: row.text for row in kept.dataset(trial).validation}[items["item_id"][0]]
    with torch.no_grad():
        batch = AutoTokenizer.from_pretrained(trial.model.path)(text, return_tensors="pt", return_token_type_ids=False)
        expected = model(**batch).logits[0].log_softmax(-1)
    torch.testing.assert_close(torch.tensor(items["logprobs"][0]), expected, atol=1e-4, rtol=0, check_dtype=False)


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_what_is_trained_in_full_is_not_quantised(
    precision: str, save: Callable[..., Path], trial_of: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    trial = trial_of(save("bert", None, AutoModelForMaskedLM), precision=precision)
    kept = DeviceCache(torch.device("cpu"))
    [event] = [e for e in drive(HfEngine(kept, score), [trial], tmp_path)["t0000"] if hasattr(e, "reason")]
    assert event.row is not None, event.reason
    heads = [p for name, p in kept.base(trial).model.named_parameters() if "pooler" in name or "classifier" in name]
    assert all(parameter.is_floating_point() for parameter in heads)
    layers = [type(m).__name__ for name, m in kept.base(trial).model.named_modules() if name.endswith("query")]
    assert set(layers) <= {"Linear4bit", "Linear8bitLt"}


def test_the_norm_of_a_fresh_head_passes_values_on(
    save: Callable[..., Path], trial_of: Callable[..., TrialConfig]
) -> None:
    folder = save("modernbert", None)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {n: t for n, t in weights.items() if not n.startswith(("head", "classifier"))},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    trial = trial_of(folder)
    base = loaded(trial)
    assert base.fresh == {"head", "classifier"}
    model = add_adapter(base.model, trial.lora, "classification", base.heads, 0, base.fresh)
    logits = model(input_ids=torch.tensor([[3, 5, 7]])).logits
    remove_adapter(model)
    assert logits.abs().max() > 1e-6


def test_a_saved_config_is_as_it_was(save: Callable[..., Path], trial_of: Callable[..., TrialConfig]) -> None:
    folder = save("bert", THEIRS)
    loaded(trial_of(folder))
    assert AutoConfig.from_pretrained(folder).id2label == dict(enumerate(THEIRS))
