"""What a model writes, against decoding step by step without batches and caches, and against PEFT's ``generate``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import GenerationConfig

from analysis.folder import TrialFolder
from tests.trainer.engines.test_pack_equivalence import materials  # noqa: F401  # fixture
from tests.trainer.evaluation.test_scoring_together import three, trained  # noqa: F401  # fixture
from tests.trainer.packs import packed_engine
from trainer.device_cache import DeviceCache
from trainer.engines.pack import Pack
from trainer.generation import decode as decode_module
from trainer.generation.decode import Decoding, Written, write
from trainer.likelihood.log_likelihood import SlotModel, Together
from trainer.models.base_model import BaseModel

Tokens = tuple[int, ...]
RAGGED: list[Tokens] = [(0, 5), (0, 9, 4, 12, 7, 20, 6), (0, 11, 8), (0, 21, 5, 5, 9), (0, 6, 14, 9, 17, 4, 8, 8, 10)]
KEYS = [f"r{i}" for i in range(len(RAGGED))]


@pytest.fixture(scope="module")
def kept() -> DeviceCache:
    return DeviceCache(torch.device("cpu"))


def step_by_step(
    model: Any, prompt: Tokens, most: int, ends: Sequence[int], choose: Callable[[torch.Tensor, int], int]
) -> Tokens:
    """Tokens of an answer by a pass over the whole text for each."""
    new: list[int] = []
    while len(new) < most:
        with torch.no_grad():
            last = model(input_ids=torch.tensor([[*prompt, *new]]), use_cache=False).logits[0, -1]
        token = choose(last, len(new))
        if token in ends:
            break
        new.append(token)
    return tuple(new)


def greedy(logits: torch.Tensor, position: int) -> int:
    return int(logits.argmax())


def tokens_of(written: list[Written]) -> list[Tokens]:
    return [answer.tokens for answer in written]


def end_at(base: BaseModel, monkeypatch: pytest.MonkeyPatch, *tokens: int) -> list[int]:
    """Let these tokens end an answer too. Returns all that do."""
    ends = [1, *tokens]
    monkeypatch.setattr(base.model.generation_config, "eos_token_id", ends)
    return ends


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Rows of each pass and tokens of each row."""
    shapes: list[list[int]] = []
    right = decode_module.decode

    def watched(base: Any, model: Any, *rest: Any) -> Any:
        hook = model.register_forward_pre_hook(
            lambda _, args, kwargs: shapes.append(list(kwargs["input_ids"].shape)), with_kwargs=True
        )
        try:
            return right(base, model, *rest)
        finally:
            hook.remove()

    monkeypatch.setattr(decode_module, "decode", watched)
    return shapes


@pytest.mark.parametrize(("model", "end"), [("llama", 25), ("gpt2", 20)])
def test_ragged_prompts_in_batches_write_what_each_gives_alone(
    model: str, end: int, make_trial: Any, kept: DeviceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = kept.base(make_trial(model))
    ends = end_at(base, monkeypatch, end)
    expected = [step_by_step(base.model, prompt, 9, ends, greedy) for prompt in RAGGED]
    assert len({len(answer) for answer in expected}) > 1
    for batch_size in (1, 2, 5):
        written = write(base, base.model, RAGGED, KEYS, Decoding(9), batch_size)
        assert tokens_of(written) == expected
        assert [answer.finished for answer in written] == [len(answer) < 9 for answer in expected]
        for answer in written:
            assert answer.text == base.tokenizer.decode(answer.tokens, skip_special_tokens=True).strip()


@pytest.fixture
def packed(three: Any, materials: DeviceCache, tmp_path: Path) -> Any:  # noqa: F811
    """A pack of three trained slots of different rank, and the folder of each one's adapter."""

    def make(kernel: str) -> tuple[Pack, list[Path]]:
        trials = three("llama")
        engine = packed_engine(materials, kernel)
        pack = trained(engine, trials, tmp_path)
        folders = [TrialFolder(tmp_path / trial.trial_id).checkpoint_dir(2) for trial in trials]
        for trial, folder in zip(trials, folders, strict=True):
            engine.snapshot(trial.trial_id, folder)()
        return pack, folders

    return make


def slot_models(pack: Pack, places: Sequence[int]) -> list[SlotModel]:
    together = Together(places, pack._route)
    return [SlotModel(pack.base.model, place, together).eval() for place in places]


@pytest.mark.parametrize("kernel", ["loop", "bmm"])
def test_slots_write_together_what_each_writes_alone_and_plain_peft_writes(
    kernel: str,
    packed: Any,
    make_trial: Any,
    passes: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack, folders = packed(kernel)
    base = pack.base
    base.model.eval()
    ends = end_at(base, monkeypatch, 25, 20)
    together = slot_models(pack, [0, 1, 2])
    written = [write(base, model, RAGGED, KEYS, Decoding(9), 8) for model in together]
    shared = list(passes)
    assert len({len(answer) for answers in written for answer in tokens_of(answers)}) > 2
    assert len(set(map(tuple, map(tokens_of, written)))) == 3, "the slots write different answers"
    passes.clear()
    for place, answers in enumerate(written):
        [alone] = slot_models(pack, [place])
        assert write(base, alone, RAGGED, KEYS, Decoding(9), 8) == answers
        if place == 0:
            assert len(passes) <= len(shared)
    assert max(rows for rows, _ in shared) == 3 * len(RAGGED)
    assert len(passes) > len(shared), "together they take as many passes as the longest takes alone"
    for folder, answers in zip(folders, written, strict=True):
        plain = DeviceCache(torch.device("cpu")).base(make_trial("llama")).model
        lone = PeftModel.from_pretrained(plain, str(folder)).eval()
        settings = GenerationConfig(do_sample=False, max_new_tokens=9, eos_token_id=ends, pad_token_id=2)
        for prompt, answer in zip(RAGGED, answers, strict=True):
            ids = torch.tensor([prompt])
            whole = lone.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            new = whole[0, len(prompt) :].tolist()
            assert answer.tokens == tuple(new[:-1] if new[-1] in ends else new)
            assert answer.finished == (new[-1] in ends)


def test_an_answer_that_has_ended_leaves_the_batch(
    make_trial: Any, kept: DeviceCache, passes: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = kept.base(make_trial("llama"))
    end_at(base, monkeypatch, 25)
    written = write(base, base.model, RAGGED, KEYS, Decoding(9), 8)
    n = [min(9, len(answer.tokens) + answer.finished) for answer in written]  # passes that an answer takes
    assert len(set(n)) > 1
    expected = [sum(took > step for took in n) for step in range(max(n))]
    assert [rows for rows, _ in passes[-len(expected) :]] == expected
    assert [width for _, width in passes[-len(expected) :]] == [max(map(len, RAGGED)), *[1] * (len(expected) - 1)]
