"""What it takes to let the slots of a pack write their answers together, each alone, and by ``PeftModel.generate``.

    PYTHONPATH=. python tests/benchmarks/generation.py --slots 4 --threads 2

SmolLM2 with a random adapter for each slot answers questions of different length, greedily in float32. The three take
turns in one process, so that what else the machine does meets all of them. Their answers must be the same tokens.
"""

import argparse
import ctypes
import gc
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig

from tests.benchmarks.packs.steps import Setting, encoded, make_slot, make_trial
from trainer.config import ModelConfig
from trainer.engines.pack import Pack
from trainer.generation.batching import batching_of
from trainer.generation.decode import Decoding, write
from trainer.generation.endings import Tokens, end_tokens
from trainer.likelihood.log_likelihood import SlotModel, Together
from trainer.models.base_model import best_device, load_base

QUESTIONS = (
    "What is the capital of Sweden? One word.",
    "Name three metals.",
    "Is a whale a fish? Answer yes or no.",
    "Translate to French: Good morning, everyone, and thank you very much for coming so early.",
    "Which of these is a bird: copper, owl, plum? Give only the word.",
    "How many days are there in a week, and what is the third one called, if Monday is the first?",
)
Answers = list[list[Tokens]]  # of each slot to each prompt


def most_memory(work: Callable[[], Answers]) -> tuple[Answers, float, float]:
    """What a piece of work gives, its seconds, and by how many MiB the process's memory grew meanwhile at the most."""
    gc.collect()
    if sys.platform == "linux":  # what an earlier one has freed would count as there already
        ctypes.CDLL(None).malloc_trim(0)
    page, over = os.sysconf("SC_PAGE_SIZE"), threading.Event()
    sizes: list[int] = []

    def look() -> None:
        while not over.wait(0.01):
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * page)

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() if cuda else int(Path("/proc/self/statm").read_text().split()[1]) * page
    watcher = threading.Thread(target=look)
    watcher.start()
    began = time.perf_counter()
    answers = work()
    seconds = time.perf_counter() - began
    over.set()
    watcher.join()
    peak = torch.cuda.max_memory_allocated() if cuda else max(sizes, default=held)
    return answers, seconds, (peak - held) / (1 << 20)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--batch", type=int, default=12, help="prompts of a slot in a pass, at most")
    parser.add_argument("--new", type=int, default=48, help="tokens of an answer, at most")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    config = ModelConfig(source="package", package="smollm2")
    base, plain = (load_base(config, "fp32", "completion", (), best_device()) for _ in range(2))
    template = base.tokenizer.apply_chat_template
    asked = [QUESTIONS[i % len(QUESTIONS)] + f" ({i})" for i in range(options.prompts)]
    prompts = [
        tuple(template([{"role": "user", "content": one}], add_generation_prompt=True, return_dict=True)["input_ids"])
        for one in asked
    ]
    pack = Pack(base, "completion")
    draw = torch.Generator().manual_seed(0)
    for i in range(options.slots):
        slot = make_slot(base, make_trial(i, "fp32", Setting(options.slots, 1, 32)), encoded(32))
        for module in slot.modules.values():
            with torch.no_grad():
                module.b.copy_(torch.randn(module.b.shape, generator=draw) * 0.02)
        pack.add(slot)
    pack.place()
    base.model.eval()
    batching_of(base)
    decoding, ends = Decoding(options.new), end_tokens(base)

    def written(groups: list[list[int]]) -> Answers:
        answers: Answers = []
        for places in groups:
            together = Together(places, pack._route)
            for place in places:
                model = SlotModel(base.model, place, together)
                made = write(base, model, prompts, asked, decoding, options.batch)
                answers.append([answer.tokens for answer in made])
        return answers

    places = list(range(options.slots))
    with tempfile.TemporaryDirectory() as folder:
        for place in places:
            pack.slots[place].snapshot(Path(folder) / str(place))()
        adapted: Any = PeftModel.from_pretrained(plain.model, str(Path(folder) / "0"), adapter_name="0")
        for place in places[1:]:
            adapted.load_adapter(str(Path(folder) / str(place)), adapter_name=str(place))
    adapted.eval()
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=options.new, eos_token_id=sorted(ends), pad_token_id=base.pad_token
    )
    plain.model.generation_config = settings

    def by_peft() -> Answers:
        return [_generated(adapted, str(place), prompts, settings, ends, options.batch) for place in places]

    ways: dict[str, Callable[[], Answers]] = {
        "together": lambda: written([places]),
        "each alone": lambda: written([[place] for place in places]),
        "PEFT": by_peft,
    }
    n = options.slots * options.prompts
    print(f"{n} answers, {options.slots} slots, at most {options.new} tokens, {options.threads} threads, {base.device}")
    taken: dict[str, list[float]] = {name: [] for name in ways}
    grown: dict[str, list[float]] = {name: [] for name in ways}
    first: Answers = []
    for _ in range(options.rounds):
        for name, work in ways.items():
            answers, seconds, memory = most_memory(work)
            taken[name].append(seconds)
            grown[name].append(memory)
            first = first or answers
            differing = sum(
                a != b for one, other in zip(first, answers, strict=True) for a, b in zip(one, other, strict=True)
            )
            assert not differing, f"{name}: {differing} of {n} answers are others"
    lengths = sorted(len(tokens) for one in first for tokens in one)
    distinct = len({tokens for one in first for tokens in one})
    print(f"the same tokens each time; {distinct} distinct answers, {lengths[0]} to {lengths[-1]} tokens,"
          f" half below {lengths[len(lengths) // 2]}")  # fmt: skip
    for name in ways:
        ratios = [a / b for a, b in zip(taken[name], taken["together"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} times as long as together ({min(ratios):.2f} to {max(ratios):.2f})"
        print(
            f"{name:10} {statistics.median(taken[name]):7.2f} s, {spread}, {max(grown[name]):5.0f} MiB more at the most"
        )
    return 0


def _generated(
    model: Any, adapter: str, prompts: list[Tokens], settings: GenerationConfig, ends: frozenset[int], batch: int
) -> list[Tokens]:
    """What transformers writes with an adapter, in batches of prompts by length, padded on the left."""
    model.set_adapter(adapter)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    result: list[Tokens] = [()] * len(prompts)
    for at in range(0, len(order), batch):
        part = order[at : at + batch]
        width = len(prompts[part[0]])
        gaps = [width - len(prompts[i]) for i in part]
        ids = torch.tensor(
            [[settings.pad_token_id] * gap + list(prompts[i]) for gap, i in zip(gaps, part, strict=True)]
        )
        mask = torch.tensor([[0] * gap + [1] * (width - gap) for gap in gaps])
        with torch.inference_mode():
            whole = model.generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=settings
            )
        for i, new in zip(part, whole[:, width:].tolist(), strict=True):
            end = next((n for n, token in enumerate(new) if token in ends), len(new))
            result[i] = tuple(new[:end])
    return result


if __name__ == "__main__":
    raise SystemExit(main())
