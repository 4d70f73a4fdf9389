"""What a model writes, against decoding step by step without batches and caches, and against PEFT's ``generate``."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel

from analysis.folder import TrialFolder
from tests.trainer.engines.test_pack_equivalence import materials  # noqa: F401  # fixture
from tests.trainer.evaluation.test_scoring_together import three, trained  # noqa: F401  # fixture
from tests.trainer.packs import packed_engine
from trainer.device_cache import DeviceCache
from trainer.engines.lora_kernels import Segment
from trainer.engines.pack import Pack
from trainer.generation import decode as decode_module
from trainer.generation import decoding_pass
from trainer.generation.decode import Decoding, Written, write
from trainer.generation.endings import AnswerText, end_tokens
from trainer.generation.token_choice import drawn, uniform
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


def test_a_models_own_generation_config_changes_no_answer(
    make_trial: Any, kept: DeviceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = kept.base(make_trial("llama"))
    before = write(base, base.model, RAGGED, KEYS, Decoding(9), 8)
    assert any(len(set(answer.tokens)) < len(answer.tokens) for answer in before), "a penalty would be seen"
    changed = GenerationConfig(
        repetition_penalty=1.8,
        no_repeat_ngram_size=2,
        do_sample=True,
        temperature=0.3,
        min_new_tokens=9,
        eos_token_id=1,
    )
    monkeypatch.setattr(base.model, "generation_config", changed)
    assert write(base, base.model, RAGGED, KEYS, Decoding(9), 8) == before
    assert base.model.generation_config is changed
    drawn = write(base, base.model, RAGGED, KEYS, Decoding(9, temperature=1.5), 8)
    monkeypatch.undo()
    assert write(base, base.model, RAGGED, KEYS, Decoding(9, temperature=1.5), 8) == drawn


def test_constrained_answers_are_those_allowed_also_where_one_begins_another(
    make_trial: Any, kept: DeviceCache
) -> None:
    base = kept.base(make_trial("llama"))
    labels: list[Tokens] = [(7, 9), (7, 10), (8, 1), (8, 11, 1)]  # the last two are closed by the end of text
    others: list[Tokens] = [(20,), (21, 6)]
    allowed = [labels, others, labels, labels, labels]

    def expected(prompt: Tokens, answers: list[Tokens]) -> Tokens:
        new: Tokens = ()
        while options := sorted({answer[len(new)] for answer in answers if answer[: len(new)] == new != answer}):
            with torch.no_grad():
                last = base.model(torch.tensor([[*prompt, *new]])).logits[0, -1]
            new = (*new, max(options, key=lambda token: last[token].item()))
        return tuple(token for token in new if token != 1)

    prompts = [row.context for row in kept.validation(make_trial("llama")).encoded]
    several = [allowed[i % 5] for i in range(len(prompts))]
    keys = [str(i) for i in range(len(prompts))]
    written = write(base, base.model, prompts, keys, Decoding(3), 8, [tuple(one) for one in several])
    assert tokens_of(written) == [expected(prompt, one) for prompt, one in zip(prompts, several, strict=True)]
    assert len(set(tokens_of(written))) > 2
    assert all(answer.finished for answer in written)


def nucleus(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Probabilities in the smallest set of likeliest tokens that has ``top_p`` (Holtzman et al. 2020, section 3.1)."""
    p = (logits.double() / temperature).softmax(-1)
    order = sorted(range(len(p)), key=lambda token: -p[token].item())
    n = next(n for n in range(1, len(p) + 1) if sum(p[order[:n]]) >= top_p - 1e-9)
    kept = torch.zeros_like(p)
    kept[order[:n]] = p[order[:n]]
    return kept / kept.sum()


def test_what_is_drawn_depends_on_seed_key_and_position_alone(make_trial: Any, kept: DeviceCache) -> None:
    base = kept.base(make_trial("llama"))
    decoding = Decoding(9, temperature=0.7, top_p=0.8, seed=5)
    written = write(base, base.model, RAGGED, KEYS, decoding, 8)
    for prompt, key, answer in zip(RAGGED, KEYS, written, strict=True):

        def choose(logits: torch.Tensor, position: int, key: str = key) -> int:
            sums = nucleus(logits, 0.7, 0.8).cumsum(0)
            return int((sums > uniform(5, key, position)).nonzero()[0])

        assert answer.tokens == step_by_step(base.model, prompt, 9, [1], choose)
        assert write(base, base.model, [prompt], [key], decoding, 1) == [answer], "whoever is in the batch"
    assert tokens_of(written) != tokens_of(write(base, base.model, RAGGED, KEYS, Decoding(9), 8))
    other = replace(decoding, seed=6)
    assert tokens_of(written) != tokens_of(write(base, base.model, RAGGED, KEYS, other, 8))
    same_prompt = write(base, base.model, [RAGGED[1]] * 3, ["a", "b", "a"], decoding, 8)
    assert same_prompt[0] == same_prompt[2] != same_prompt[1]


def test_slots_draw_together_what_each_draws_alone(packed: Any) -> None:
    pack, _ = packed("loop")
    pack.base.model.eval()
    decoding = Decoding(9, temperature=1.2)
    written = [write(pack.base, model, RAGGED, KEYS, decoding, 8) for model in slot_models(pack, [0, 1, 2])]
    for place in (0, 1, 2):
        [alone] = slot_models(pack, [place])
        assert write(pack.base, alone, RAGGED, KEYS, decoding, 8) == written[place]


def test_an_answer_ends_before_a_stop_string_that_spans_tokens(
    make_trial: Any, kept: DeviceCache, passes: list[list[int]]
) -> None:
    base = kept.base(make_trial("gpt2"))
    whole = [answer.tokens for answer in write(base, base.model, RAGGED, KEYS, Decoding(9), 8)]
    decode = base.tokenizer.decode
    text = decode(whole[1])
    first, second = (decode([token]) for token in whole[1][3:5])
    stop = decode(whole[1][3:5])[1:-1]  # part of one word and of the next
    assert stop not in first
    assert stop not in second
    passes.clear()
    written = write(base, base.model, RAGGED, KEYS, Decoding(9, stop=(stop, "no such text")), 8)
    assert written[1].text == text[: text.index(stop)].strip()
    n = next(n for n in range(10) if stop in decode(whole[1][:n]))
    assert written[1].tokens == whole[1][:n]
    assert written[1].finished
    assert passes[n - 1][0] > passes[n][0] if len(passes) > n else True
    for answer, tokens in zip(written, whole, strict=True):
        if stop not in decode(tokens):
            assert answer.tokens == tokens


def test_a_stop_string_may_be_a_special_token(make_trial: Any, kept: DeviceCache) -> None:
    base = kept.base(make_trial("llama"))
    text = AnswerText(base.tokenizer, ("<unk>",))
    assert text.text((5, 6, 3, 7)) == base.tokenizer.decode([5, 6])
    assert text.text((5, 0, 6, 0, 3, 7)).split() == base.tokenizer.decode([5, 6]).split()
    assert text.stopped((5, 3))
    assert not text.stopped((5, 0))


def test_a_batch_that_does_not_fit_is_halved_and_the_answers_are_the_same(
    make_trial: Any, kept: DeviceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = kept.base(make_trial("llama"))
    expected = write(base, base.model, RAGGED, KEYS, Decoding(9), 8)
    right, batches = decode_module.decode, []

    def tight(base: BaseModel, model: PreTrainedModel, prompts: Sequence[Tokens], *rest: Any) -> Any:
        batches.append(len(prompts))
        lines = right(base, model, prompts, *rest)
        if len(prompts) > 2:
            raise MemoryError("no room")
        return lines

    monkeypatch.setattr(decode_module, "decode", tight)
    assert write(base, base.model, RAGGED, KEYS, Decoding(9), 8) == expected
    assert batches == [5, 2, 2, 1]


def test_one_long_prompt_leaves_the_batches_of_the_others_large(
    make_trial: Any, kept: DeviceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = kept.base(make_trial("llama"))
    monkeypatch.setattr(decode_module, "_PASS", {"cpu": 60})
    batches: list[list[int]] = []
    right = decode_module.decode

    def watched(base: BaseModel, model: Any, prompts: Sequence[Tokens], *rest: Any) -> Any:
        batches.append([len(prompt) for prompt in prompts])
        return right(base, model, prompts, *rest)

    monkeypatch.setattr(decode_module, "decode", watched)
    prompts = [(0, *[5] * 99), *RAGGED, *RAGGED]
    write(base, base.model, prompts, [str(i) for i in range(len(prompts))], Decoding(5), 8)
    assert batches == [[100], [9, 9, 7, 7], [5, 5, 3, 3], [2, 2]]


def test_prompt_and_answer_fit_the_window(make_trial: Any, kept: DeviceCache) -> None:
    base = kept.base(make_trial("gpt2"))
    assert base.window == 128
    long: Tokens = (0, *[5, 9, 4] * 41)
    [answer, short] = write(base, base.model, [long, RAGGED[0]], ["a", "b"], Decoding(9), 8)
    assert len(answer.tokens) == 128 - len(long) < 9
    assert not answer.finished
    assert len(short.tokens) == 9
    for wrong in ((), (5,) * 128):
        with pytest.raises(ValueError, match="expected 1 to 127"):
            write(base, base.model, [wrong], ["a"], Decoding(9), 8)


def test_rows_that_cannot_leave_the_batch_stay_and_change_nothing(
    make_trial: Any, kept: DeviceCache, passes: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = kept.base(make_trial("llama"))
    end_at(base, monkeypatch, 25)
    expected = write(base, base.model, RAGGED, KEYS, Decoding(9), 8)
    monkeypatch.setattr(decoding_pass, "_selectable", lambda inputs: False)
    passes.clear()
    assert write(base, base.model, RAGGED, KEYS, Decoding(9), 8) == expected
    assert {rows for rows, _ in passes} == {len(RAGGED)}


def test_logits_are_computed_for_the_last_position_alone(make_trial: Any, kept: DeviceCache) -> None:
    base = kept.base(make_trial("llama"))
    shapes: list[torch.Size] = []
    hook = base.model.lm_head.register_forward_hook(lambda layer, inputs, output: shapes.append(output.shape))
    try:
        write(base, base.model, RAGGED, KEYS, Decoding(3), 8)
    finally:
        hook.remove()
    assert {shape[1] for shape in shapes} == {1}


def test_a_slot_without_rows_is_not_in_the_routing(packed: Any) -> None:
    """A grouped product with an empty group hangs on a GPU (``lora_kernels.grouped``)."""
    pack, _ = packed("loop")
    with pack._route([0, 1, 2], [2, 0, 1]):
        assert pack._routing.segments == (Segment(0, 0, 2), Segment(2, 2, 3))
    assert pack._routing is None


def test_a_slot_whose_weights_are_not_finite_leaves_the_answers_of_the_others(packed: Any) -> None:
    pack, _ = packed("loop")
    pack.base.model.eval()
    expected = [write(pack.base, model, RAGGED, KEYS, Decoding(9), 8) for model in slot_models(pack, [0, 1, 2])]
    with torch.no_grad():
        next(iter(pack.slots[1].modules.values())).b.fill_(float("nan"))
    for temperature in (0.0, 1.0):
        written = [
            write(pack.base, model, RAGGED, KEYS, Decoding(9, temperature=temperature), 8)
            for model in slot_models(pack, [0, 1, 2])
        ]
        if not temperature:
            assert [written[0], written[2]] == [expected[0], expected[2]]
            assert written[1] != expected[1]


@pytest.mark.parametrize("mistake", ["the first slot's adapter for all", "rows of those that ended", "no mask"])
def test_a_known_mistake_is_seen(mistake: str, packed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pack, _ = packed("loop")
    base = pack.base
    base.model.eval()
    end_at(base, monkeypatch, 25, 20)
    expected = [write(base, model, RAGGED, KEYS, Decoding(9), 8) for model in slot_models(pack, [0, 1, 2])]
    if "adapter" in mistake:
        route = Pack._route
        monkeypatch.setattr(Pack, "_route", lambda self, places, rows: route(self, [0] * len(places), rows))
    elif "rows" in mistake:  # the caches keep their first rows, whoever left
        right = decoding_pass._of_rows
        monkeypatch.setattr(
            decoding_pass, "_of_rows", lambda inputs, rows, kept: right(inputs, rows, torch.arange(len(kept)))
        )
    else:
        generate = type(base.model).generate
        monkeypatch.setattr(
            type(base.model),
            "generate",
            lambda self, attention_mask, **given: generate(self, attention_mask=attention_mask | 1, **given),
        )
    assert [write(base, model, RAGGED, KEYS, Decoding(9), 8) for model in slot_models(pack, [0, 1, 2])] != expected


def test_what_is_drawn_follows_the_distribution_and_never_what_cannot_come() -> None:
    logits = torch.tensor([-torch.inf, 0.0, 1.0, -torch.inf, 2.0, -torch.inf])
    n = 4000
    numbers = [uniform(0, "key", position) for position in range(n)]
    tokens = drawn(logits.expand(n + 2, -1), [*numbers, 0.0, 1 - 2**-48])
    assert tokens[-2:].tolist() == [1, 4]
    shares = torch.bincount(tokens, minlength=6) / (n + 2)
    torch.testing.assert_close(shares, logits.softmax(-1), atol=4 / n**0.5 / 2, rtol=0)  # four standard errors
    assert torch.count_nonzero(shares) == 3


def test_tokens_that_end_a_turn_all_count(make_trial: Any, kept: DeviceCache, monkeypatch: pytest.MonkeyPatch) -> None:
    base = kept.base(make_trial("llama"))
    assert end_tokens(base) == {1}
    monkeypatch.setattr(base.model.generation_config, "eos_token_id", [1, 7])
    monkeypatch.setattr(
        base.tokenizer,
        "chat_template",
        "{% for m in messages %}<s>{{ m['role'] }} {{ m['content'] }}<unk>\n{% endfor %}",
        raising=False,
    )
    assert end_tokens(base) == {1, 7, 3}
