"""The tokens are those that tokenizer.json describes, whatever class tokenizer_config.json names."""

import json

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trainer.models.tokenizer import open_tokenizer

_TEXTS = ["In 2023 I'd  pay\n\n 650841823 é", "  two blanks", " hello\nworld", "Label: one"]


def _digits() -> Tokenizer:
    """As of OLMo 2 and Granite 4: up to three digits stay together, which GPT-2's own pattern does not do."""
    tokenizer = Tokenizer(models.BPE())
    digits = Regex(r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(digits, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = ["In 2023 I'd pay 202 203 650 841 823 Label: one hello world two blanks"] * 20
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    )
    return tokenizer


def _metaspace() -> Tokenizer:
    """As of Llama 2: every text, a blank at its beginning too, gets a blank before it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.train_from_iterator(
        ["two blanks", "hello\nworld", "Label: one", *"2023I'dpay6508417é"],
        trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"]),
    )
    return tokenizer


@pytest.mark.parametrize(("made", "named"), [(_digits, "GPT2Tokenizer"), (_metaspace, "LlamaTokenizer")])
def test_a_tokenizer_that_transformers_rebuilds_otherwise_is_read_from_its_file(tmp_path, made, named):
    end = "<|endoftext|>" if made is _digits else "</s>"
    PreTrainedTokenizerFast(tokenizer_object=made(), eos_token=end).save_pretrained(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": named}))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    written = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    right = [written.encode(text, add_special_tokens=False).ids for text in _TEXTS]

    rebuilt = AutoTokenizer.from_pretrained(tmp_path)
    assert rebuilt(_TEXTS, add_special_tokens=False).input_ids != right, "transformers has mended it: drop our mending"
    ours = open_tokenizer(str(tmp_path), {})
    assert ours(_TEXTS, add_special_tokens=False).input_ids == right
    assert ours.eos_token == end
    assert ours.rebuilt_as == named


def test_a_tokenizer_that_transformers_reads_rightly_is_left_to_it(tmp_path):
    from transformers import GPT2Tokenizer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(_TEXTS * 9, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!").save_pretrained(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert isinstance(open_tokenizer(str(tmp_path), {}), GPT2Tokenizer)
