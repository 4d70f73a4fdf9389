"""Texts whose parts matter, such as a prompt and its label, as the tokens of the whole: tokenizers unlike GPT-2's.

The reference is the tokenizer itself, on the whole text, and lm-evaluation-harness.
"""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from analysis.errors import ConfigError
from trainer.assets.packages import fetch
from trainer.assets.wheels import Package
from trainer.config import TaskConfig, TrialConfig
from trainer.data.encode import as_labels, encode_rows
from trainer.data.schemas import Row
from trainer.data.text_tokens import begin_tokens, first_token_after, text_tokens
from trainer.data.tokenize import tokens_of
from trainer.evaluation.bias.score import ModelScorer
from trainer.evaluation.evaluate import Validation, evaluate
from trainer.evaluation.generate import ToAnswer, answered
from trainer.few_shot import with_examples
from trainer.generation.prompts import prompts_of
from trainer.models.base_model import BaseModel

CORPUS = [
    "I was charged twice please refund one billing", "The app crashes bug idea when I open a photo",
    "Label: billing\nLabel: bug\nLabel: idea", "Question Answer: yes no maybe",
] * 20  # fmt: skip
LABELS = ("billing", "bug", "idea")
TASK = TaskConfig(name="completion")
TEXTS = (
    "I was charged twice", "The app crashes\n", "  an idea", "日本 é\tplease", "a", "bug: ", "<s>I open", "\n",
    "x" * 40,
)  # fmt: skip
ROWS = [Row(str(i), text, LABELS[i % 3]) for i, text in enumerate(TEXTS)]
MISTRAL = Package(
    name="mistral",
    requirement="mistral-common==1.13.1",
    wheel="mistral_common-1.13.1-py3-none-any.whl",
    sha256="98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
    megabytes=7,
    licence="Apache-2.0",
    summary="Mistral's tokenizers",
    members={
        "mistral_common/data/tokenizer.model.v1": "tokenizer.model.v1/tokenizer.model",
        "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3":
            "mistral_instruct_tokenizer_240323.model.v3/tokenizer.model",
        "mistral_common/data/tekken_240911.json": "tekken_240911.json",
    },
)  # fmt: skip


def made(kind: str) -> Any:
    """A tokenizer trained on a few lines.

    Args:
        kind: ``bytes``: as GPT-2's; ``bos``: the same with a begin-of-text token; ``both``: it appends its end token
            too; ``metaspace``: SentencePiece's way, as Llama 2's and Mistral's; ``merging``: the same, with a token
            that spells ``: bug``.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    if kind in ("bytes", "bos", "both"):
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        inner.train_from_iterator(
            CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
        )
    else:
        inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        inner.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        fallback = [f"<0x{i:02X}>" for i in range(256)]
        if kind == "metaspace":
            inner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # no token runs over words
            trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*special, *fallback])
            inner.train_from_iterator(CORPUS, trainer)
            inner.pre_tokenizer = None
        else:
            letters = [*sorted(set("".join(CORPUS)) - {" ", "\n"}), "▁", "bu", "bug", "▁bug", ":▁bug"]
            merges = [("b", "u"), ("bu", "g"), ("▁", "bug"), (":", "▁bug")]
            vocabulary = {token: i for i, token in enumerate([*special, *fallback, *letters])}
            inner.model = models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>")
            inner.add_special_tokens(special)
    if kind != "bytes":
        end = " </s>" if kind == "both" else ""
        inner.post_processor = processors.TemplateProcessing(
            single=f"<s> $A{end}", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


KINDS = ("bytes", "bos", "both", "metaspace", "merging")


def whole(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The tokenizer's own tokens of a text, without an end token and with a begin-of-text token once."""
    ids = tokenizer(text).input_ids
    ids = ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
    return tuple(ids[1:] if ids[:2] == [tokenizer.bos_token_id] * 2 else ids)


def base_of(tokenizer: Any) -> BaseModel:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    tokenizer.pad_token = tokenizer.eos_token
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, initializer_range=0.2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return BaseModel(AutoModelForCausalLM.from_config(config).eval(), tokenizer, "fp32")


def check_rows(tokenizer: Any) -> None:
    """Each row with each of its labels is the tokens of the whole text, divided where the label begins."""
    encoded = encode_rows(ROWS, LABELS, tokenizer, TASK, 200)
    for row, of in zip(ROWS, encoded, strict=True):
        prompt = f"{row.text}\nLabel:"
        assert of.tokens == whole(tokenizer, f"{prompt} {row.label}")
        for label, (context, tokens) in zip(LABELS, of.choices, strict=True):
            assert context + tokens == whole(tokenizer, f"{prompt} {label}")
            spelled = tokenizer.decode(tokens)
            assert spelled.strip().endswith(label)
            rest = tokenizer.decode([*tokens[:1], *tokens[1:]])[len(tokenizer.decode(tokens[:1])) :]
            assert not rest.startswith(" "), "no more tokens than the label needs"
        assert of.choices[of.target] == (of.context, of.completion)
    for training, of in zip(encode_rows(ROWS, LABELS, tokenizer, TASK, 200, scored=False), encoded, strict=True):
        assert training == replace(of, choices=())


@pytest.mark.parametrize("kind", KINDS)
def test_a_labelled_row_is_the_tokens_of_its_whole_text(kind: str) -> None:
    check_rows(made(kind))


def test_a_token_that_runs_over_the_prompts_end_belongs_to_the_label() -> None:
    tokenizer = made("merging")
    [row] = encode_rows([Row("0", "I was", "bug")], LABELS, tokenizer, TASK, 99)
    spelled = [
        (tokenizer.decode(context), tokenizer.convert_ids_to_tokens(label[:1])) for context, label in row.choices
    ]
    assert spelled == [("<s> I was\nLabel:", ["▁"]), ("<s> I was\nLabel", [":▁bug"]), ("<s> I was\nLabel:", ["▁"])]


def test_a_special_token_that_swallows_the_space_behind_it_stays_the_prompts_as_in_the_harness() -> None:
    from lm_eval.api.model import TemplateLM
    from tokenizers import AddedToken

    tokenizer = made("bos")
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|end|>", rstrip=True, special=True)]})
    task = replace(TASK, prompt="{text}<|end|>")
    [row] = encode_rows([Row("0", "I was", "bug")], LABELS, tokenizer, task, 99)
    stand_in = SimpleNamespace(backend="causal", tok_encode=lambda text: tokenizer(text).input_ids)
    for label, (context, tokens) in zip(LABELS, row.choices, strict=True):
        theirs = TemplateLM._encode_pair(stand_in, "I was<|end|>", f" {label}")
        assert (list(context), list(tokens)) == theirs


def test_what_a_tokenizer_puts_before_a_text_is_told_from_what_it_puts_behind() -> None:
    assert [begin_tokens(made(kind)) for kind in KINDS] == [(), (1,), (1,), (1,), (1,)]


def test_a_begin_of_text_token_that_is_written_out_stands_once() -> None:
    for kind in ("bos", "both", "metaspace"):
        tokenizer = made(kind)
        [one] = text_tokens(tokenizer, ["<s>I was"])
        assert one.ids.count(tokenizer.bos_token_id) == 1
        rows = [Row("0", "<s>I was charged\nAnswer:", "", completion=" billing")]
        [row] = tokens_of(rows, (), "completion", tokenizer, TASK, 99, training=True).encoded
        assert row.tokens == (*whole(tokenizer, "<s>I was charged\nAnswer: billing"), tokenizer.eos_token_id)
        assert tokenizer.decode(row.completion) == "billing</s>" if kind == "metaspace" else " billing</s>"


def test_a_text_that_begins_with_a_written_out_begin_of_text_token_is_scored_behind_one() -> None:
    tokenizer = made("bos")
    [written, plain] = tokens_of(
        [Row("0", "<s>I was charged", ""), Row("1", "I was charged", "")],
        (),
        "text",
        tokenizer,
        TASK,
        99,
        training=False,
    ).encoded
    assert written == plain


def test_an_end_token_stands_once_and_only_at_the_end() -> None:
    tokenizer = made("both")
    rows = [Row("0", "I was charged", "", completion=" billing"), Row("1", "The app", "", completion=" bug")]
    for row in tokens_of(rows, (), "completion", tokenizer, TASK, 99, training=True).encoded:
        assert row.tokens.count(tokenizer.eos_token_id) == 1
        assert row.completion[-1] == tokenizer.eos_token_id
    [window] = tokens_of(rows, (), "text", tokenizer, TASK, 99, training=True).encoded
    assert window.tokens == (*whole(tokenizer, "I was charged"), 2, *whole(tokenizer, "The app"), 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["one " * 60, "one two " * 400, "日本" * 40, "x" * 90 + "\n"])
def test_of_a_long_row_only_the_end_of_the_text_is_cut_and_every_label_fits(kind: str, text: str) -> None:
    tokenizer = made(kind)
    row = Row("0", text, "bug")
    for length in (24, 33):
        [scored] = encode_rows([row], LABELS, tokenizer, TASK, length)
        [trained] = encode_rows([row], LABELS, tokenizer, TASK, length, scored=False)
        assert scored.cut
        assert scored.length <= length
        prefix, rest = scored.text.split("\nLabel:")
        assert text.startswith(prefix)
        assert rest == ""
        longer = [row for more in (1, 2) for row in [Row("0", text[: len(prefix) + more], "bug")]]
        assert any(encode_rows([one], LABELS, tokenizer, TASK, length)[0].cut for one in longer), "no room is left"
        assert trained.text == scored.text, "the length of a row's own label does not show in its text"
    [kept] = encode_rows([row], LABELS, tokenizer, TASK, 9999)
    assert not kept.cut


@pytest.mark.parametrize("kind", ["bytes", "bos", "metaspace"])
def test_scores_of_labels_agree_with_the_harness(kind: str, make_trial: Callable[..., TrialConfig]) -> None:
    """Where the harness's count of the prompt's own tokens finds a border; an appended end token misleads it."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    base = base_of(made(kind))
    encoded = encode_rows(ROWS, LABELS, base.tokenizer, TASK, 200)
    found = evaluate(
        base, base.model, make_trial("llama"), Validation(ROWS, encoded, LABELS, []), list(range(len(ROWS)))
    )
    harness = HFLM(pretrained=base.model, tokenizer=base.tokenizer, batch_size=4)
    asked = [
        Instance("loglikelihood", {}, (f"{row.text}\nLabel:", f" {label}"), i)
        for i, (row, label) in enumerate((row, label) for row in ROWS for label in LABELS)
    ]
    theirs = np.array([value for value, _ in harness.loglikelihood(asked, disable_tqdm=True)]).reshape(-1, 3)
    normal = theirs - np.logaddexp.reduce(theirs, axis=1, keepdims=True)
    assert np.array(found.tables["task"]["logprobs"]) == pytest.approx(normal, abs=1e-4)
    whole_texts = [-value for value in found.tables["task"]["completion_nll"]]
    assert whole_texts == pytest.approx(theirs[range(len(ROWS)), [LABELS.index(r.label) for r in ROWS]], abs=1e-4)


def test_labels_with_contexts_of_their_own_are_scored_after_them(make_trial: Callable[..., TrialConfig]) -> None:
    base = base_of(made("merging"))
    encoded = encode_rows(ROWS[:2], LABELS, base.tokenizer, TASK, 200)
    validation = Validation(ROWS[:2], encoded, LABELS, [])
    found = evaluate(base, base.model, make_trial("llama"), validation, [0, 1]).tables["task"]["logprobs"]
    for row, of, recorded in zip(ROWS, encoded, found, strict=False):
        scores = []
        for label, (context, _) in zip(LABELS, of.choices, strict=True):
            ids = torch.tensor([whole(base.tokenizer, f"{row.text}\nLabel: {label}")])
            with torch.no_grad():
                table = base.model(ids).logits[0].log_softmax(-1)
            scores.append(sum(float(table[i - 1, ids[0, i]]) for i in range(len(context), ids.shape[1])))
        assert recorded == pytest.approx(torch.tensor(scores).log_softmax(-1).tolist(), abs=1e-4)
    prompts = prompts_of(ROWS[:2], encoded, LABELS, "label", base.tokenizer, TASK, 128, 8)
    how = ToAnswer(tuple(prompts), max_new_tokens=8)
    written = answered(
        base, base.model, make_trial("llama"), prompts, ROWS[:2], encoded, LABELS, how, "final"
    ).table  # fmt: skip
    assert set(written["constrained"]) <= set(LABELS)


@pytest.mark.parametrize("kind", KINDS)
def test_examples_and_the_item_are_one_text(kind: str) -> None:
    base = base_of(made(kind))
    labels = as_labels(base.tokenizer, LABELS, TASK)
    train = encode_rows(ROWS[:4], LABELS, base.tokenizer, TASK, 200, scored=False)
    [item] = encode_rows([Row("9", "I open a photo", "bug")], LABELS, base.tokenizer, TASK, 200)
    [prompted], used = with_examples([item], train, [[3, 0]], base, labels)
    text = (
        f"{TEXTS[3]}\nLabel: {LABELS[0]}\n\nI was charged twice\nLabel: billing\n\nI open a photo\nLabel:"
    )  # fmt: skip
    assert used == [2]
    assert [context + label for context, label in prompted.choices] == [
        whole(base.tokenizer, f"{text} {label}") for label in LABELS
    ]
    scored = base.tokenizer.decode(prompted.tokens[prompted.start :]).strip()
    assert scored == base.tokenizer.decode(item.tokens[item.start :]).strip()


@pytest.mark.parametrize("kind", KINDS)
def test_a_bias_sets_continuations_follow_the_prompt_in_one_text(kind: str) -> None:
    base = base_of(made(kind))
    sums, counts = ModelScorer(base, base.model, 4).continuations(["I was charged\nAnswer:"], [" a photo"])
    ids = whole(base.tokenizer, "I was charged\nAnswer: a photo")
    with torch.no_grad():
        table = base.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    values = [float(table[i - 1, ids[i]]) for i in range(len(ids) - counts[0], len(ids))]
    assert sums == pytest.approx([sum(values)], abs=1e-4)
    assert base.tokenizer.decode(ids[len(ids) - counts[0] :]).endswith("a photo")


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_of_a_free_answer_is_the_prompt_alone(kind: str) -> None:
    base = base_of(made(kind))
    encoded = encode_rows(ROWS[:2], LABELS, base.tokenizer, TASK, 99)
    prompts = prompts_of(ROWS[:2], encoded, LABELS, "label", base.tokenizer, TASK, 128, 8)
    assert [prompt.tokens for prompt in prompts] == [whole(base.tokenizer, f"{row.text}\nLabel:") for row in ROWS[:2]]


def test_labels_that_begin_another_need_an_end_token_and_are_refused_without() -> None:
    tokenizer = made("bytes")
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="label 'New' begins another label, and this tokenizer has no end-of-text"):
        as_labels(tokenizer, ("New", "New York"), TASK)


def test_without_offsets_a_part_begins_where_tokens_differ() -> None:
    tokenizer = made("metaspace")
    [one] = text_tokens(tokenizer, ["I was\nLabel: bug"])
    with_offsets = first_token_after(tokenizer, one, "I was\nLabel:")
    assert first_token_after(tokenizer, replace(one, ends=None), "I was\nLabel:") == with_offsets


def tekken(file: Path) -> Any:
    """Mistral's tokenizer of bytes, its file read as one of tiktoken's."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    content = json.loads(file.read_text(encoding="utf-8"))
    settings = content["config"]
    n = settings["default_vocab_size"] - settings["default_num_special_tokens"]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in content["vocab"][:n]}

    class Converter(TikTokenConverter):
        def load_tiktoken_bpe(self, url: str) -> dict[bytes, int]:
            return ranks

    inner = Converter(vocab_file="", pattern=settings["pattern"]).converted()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    return tokenizer


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3", "tekken"])
def test_mistrals_tokenizers(name: str) -> None:
    from transformers import LlamaTokenizer

    folder = fetch("mistral", print, packages={"mistral": MISTRAL})
    if name == "tekken":
        check_rows(tekken(folder / "tekken_240911.json"))
        return
    tokenizer = LlamaTokenizer.from_pretrained(str(folder / name), add_bos_token=True)
    assert begin_tokens(tokenizer) == (tokenizer.bos_token_id,)
    check_rows(tokenizer)
    [row] = encode_rows([Row("0", "I was", "bug")], LABELS, tokenizer, TASK, 99)
    pieces = ["<s>", "▁I", "▁was", "<0x0A>", "Label", ":", "▁bug"]
    assert tokenizer.convert_ids_to_tokens(row.tokens) == pieces
