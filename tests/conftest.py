"""Tiny random models and small data files that stand in for real ones, and the command line for whole sweeps."""

import contextlib
import csv
import functools
import gc
import logging
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from tests.sweeps.command_line import Lorasweep, Reader

pytest.register_assert_rewrite("tests.sweeps.command_line")  # for its own asserts
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may ask a model hub
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tests side by side would spin for each other
if os.environ.get("LORASWEEP_TEST_DEVICE", "cpu") == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported: its kernels run on CPUs then

WORDS = {"fruit": "apple pear plum cherry", "metal": "iron copper zinc tin", "bird": "wren owl hawk crow"}


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started with & in a script, which commands would take over
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    gc.freeze()  # the libraries' millions of objects stay, and each collection would look through them


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)  # the same sums in the same order, whatever else the machine does


@pytest.fixture(scope="session", autouse=True)
def _interpolations_parsed_once() -> None:
    """Hundreds of tests compose the same files, and parsing takes a third of that. OmegaConf only reads the trees."""
    import omegaconf.base
    from omegaconf import grammar_parser

    parse = functools.cache(grammar_parser.parse)
    for module in (grammar_parser, omegaconf.base, omegaconf._utils):
        module.parse = parse  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _logging_left_as_found() -> Iterator[None]:
    """What a test changes of logging for the whole process would change the outcome of another one, by their order."""
    root = logging.getLogger()

    def state() -> tuple[object, ...]:
        ours = [handler for handler in root.handlers if not type(handler).__module__.startswith("_pytest")]
        return ours, logging._warnings_showwarning is not None  # type: ignore[attr-defined]

    before = state()
    yield
    assert state() == before, "this test leaves handlers at the root logger, or warnings captured by logging"


def _tokenizer(folder: Path) -> None:
    """A word-level tokenizer over the words that the tests use, with what a real one has."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted(
        {w for line in WORDS.values() for w in line.split()} | set(WORDS) | {"the", "a", "is", "and", "Label", ":"}
    )
    vocabulary = {word: i for i, word in enumerate(["<s>", "</s>", "<pad>", "<unk>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)


def save_tiny_model(kind: str, folder: Path) -> Path:
    """A random model of that kind with its tokenizer: ``llama``, ``gpt2`` (decoders) or ``bert`` (without a head)."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        BertConfig,
        GPT2Config,
        LlamaConfig,
    )

    _tokenizer(folder)
    torch.manual_seed(0)
    size = {"vocab_size": 32, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}
    if kind == "llama":
        config = LlamaConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=128, tie_word_embeddings=True, initializer_range=0.1, **size,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config)
    elif kind == "gpt2":
        model = AutoModelForCausalLM.from_config(
            GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=128, initializer_range=0.1, **size)
        )
    else:
        config = BertConfig(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=128,
            initializer_range=0.1,
            **size,
        )
        model = AutoModelForSequenceClassification.from_config(config).bert
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of random models: ``llama``, ``gpt2`` (decoders) and ``bert`` (an encoder without a head)."""
    return {kind: save_tiny_model(kind, tmp_path_factory.mktemp(f"tiny-{kind}")) for kind in ("llama", "gpt2", "bert")}


def write_rows(path: Path, n: int, seed: int) -> Path:
    """A CSV of ``n`` short texts whose words tell the label; none stands in ``tiny_data`` (seeds 0 and 1) too."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *_labelled(n, seed)])
    return path


def _labelled(n: int, seed: int) -> list[tuple[str, str]]:
    chooser = random.Random(seed)
    taken = {text for earlier, rows in ((0, 60), (1, 30)) if earlier < seed for text, _ in _labelled(rows, earlier)}
    rows = []
    for i in range(n):
        label = sorted(WORDS)[i % 3]
        text = _text(label, chooser)
        while text in taken:
            text = _text(label, chooser)
        rows.append((text, label))
    return rows


def _text(label: str, chooser: random.Random) -> str:
    words = chooser.choices(WORDS[label].split(), k=chooser.randint(2, 6))
    return "the " + " and a ".join(words)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Training and validation CSV: three classes, learnable from the words."""
    folder = tmp_path_factory.mktemp("tiny-data")
    return write_rows(folder / "train.csv", 60, 0), write_rows(folder / "validation.csv", 30, 1)


@pytest.fixture(scope="session")
def reading() -> "Reader":
    from tests.sweeps.command_line import Reader

    return Reader()


@pytest.fixture(scope="session")
def lorasweep() -> Iterator[type["Lorasweep"]]:
    from tests.sweeps.command_line import Lorasweep, left_behind

    place = Path(tempfile.mkdtemp(prefix="lt-", dir="/tmp"))
    yield type("LorasweepHere", (Lorasweep,), {"temporary": place})
    left = left_behind(place)
    for process in psutil.process_iter():  # of tests that failed: a driver that hung, a raylet that was stopped
        with contextlib.suppress(psutil.Error):
            if process.environ().get("LORASWEEP_TESTS") == str(os.getpid()):
                process.kill()
    shutil.rmtree(place)
    assert not left, "a command of these tests left temporary files behind"


@pytest.fixture(scope="session")
def tiny(tiny_models: dict[str, Path], tiny_data: tuple[Path, Path]) -> Callable[..., list[str]]:
    """Overrides for a sweep that trains in a second: ``tiny("llama")``, ``tiny("bert", "task=classification")``."""

    def overrides(model: str, *more: str) -> list[str]:
        train, validation = tiny_data
        return [
            "model=local",
            f"model.path={tiny_models[model]}",
            "data=csv",
            f"data.train={train}",
            f"data.validation={validation}",
            "train.max_steps=8",
            "train.rungs=[2,8]",
            "train.batch_size=4",
            "eval.rung_items=12",
            "bias=none",
            *more,
        ]

    return overrides
