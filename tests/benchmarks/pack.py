"""Packed against alone: tokens a second, memory and utilisation, without Ray.

python tests/benchmarks/pack.py                                   tiny shapes, on a CPU
python tests/benchmarks/pack.py --shapes smollm2 llama-1b llama-3b llama-8b --precisions bf16 nf4 \\
    --slots 1 2 4 8 16 32 --rows 1 2 4 8 --tokens 64 256 512 1024       in full, where there is a GPU

Models have random weights. A line is one setting: K slots of ranks 4 to 64 in turn, LoRA on all linear layers, so many
rows of so many tokens for each slot and step, the loss on a quarter of them. ``alone`` is the same steps with PEFT by
itself, the same trials one after the other. ``used`` is the share of the fastest matrix product measured here in the
same precision: 4 operations a base parameter and token (forward, backward to the activations), 6 an adapter parameter.
``auto`` marks what ``resources.slots=auto`` would choose at most.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from analysis.folder import TrialFolder
from tests.conftest import _tokenizer
from tests.trainer.packs import held_bytes
from trainer.config import DataConfig, LoraSettings, ModelConfig, TrainConfig, TrialConfig
from trainer.data.encode import Encoded
from trainer.engines.batches import batch_of
from trainer.engines.pack import Pack
from trainer.engines.slot import Slot
from trainer.engines.slot_budget import kept_bytes, measure
from trainer.evaluation.evaluate import Validation
from trainer.models.base_model import BaseModel, best_device, load_base
from trainer.models.lora import add_adapter, remove_adapter

RANKS = (4, 64, 8, 32, 16)


def llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int, tied: bool) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=2048,
        pad_token_id=2,
        bos_token_id=0,
        eos_token_id=1,
    )


SHAPES = {
    "tiny": lambda: llama(192, 512, 4, 6, 2, 2048, True),
    "smollm2": lambda: llama(576, 1536, 30, 9, 3, 49152, True),
    "llama-1b": lambda: llama(2048, 8192, 16, 32, 8, 128256, True),
    "llama-3b": lambda: llama(3072, 8192, 28, 24, 8, 128256, True),
    "llama-8b": lambda: llama(4096, 14336, 32, 32, 8, 128256, False),
}


@dataclass(frozen=True)
class Setting:
    """One line: rows and tokens are a slot's in one step."""

    slots: int
    rows: int
    tokens: int


def load(shape: str, precision: str, folder: Path) -> BaseModel:
    """Random weights, through the same door as real ones."""
    where = folder / shape
    if not where.exists():
        where.mkdir()
        _tokenizer(where)
        with torch.device(best_device()):
            dtype = torch.float32 if shape == "tiny" else torch.bfloat16
            AutoModelForCausalLM.from_config(SHAPES[shape](), dtype=dtype).save_pretrained(where)
    return load_base(ModelConfig(source="local", path=str(where)), precision, "completion", (), best_device())


def make_trial(i: int, precision: str, setting: Setting) -> TrialConfig:
    return TrialConfig(
        trial_id=f"t{i}",
        seed=i,
        precision=precision,
        data=DataConfig(max_length=setting.tokens),
        lora=LoraSettings(rank=RANKS[i % len(RANKS)], targets="all_linear"),
        train=TrainConfig(max_steps=10**6, batch_size=setting.rows, rungs=[10**6]),
    )


def encoded(tokens: int) -> list[Encoded]:
    """Rows of equal length."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(4, 25, (64, tokens), generator=draw).tolist()
    cut = tokens - tokens // 4
    return [Encoded(tuple(row[:cut]), 0, tuple(row[cut:]), tokens) for row in rows]


def make_slot(base: BaseModel, trial: TrialConfig, rows: list[Encoded]) -> Slot:
    nothing = Validation([], [], ("a", "b"), [], [])
    return Slot(trial, TrialFolder(Path("unused")), base, rows, nothing, lambda metrics: 0.0, None)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device, least: float) -> float:
    """Of one call, after a first one: the median of calls that fill at least so many seconds, and no fewer than 3."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < least:
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


def fastest(device: torch.device, dtype: torch.dtype, least: float) -> float:
    """Operations a second of a large matrix product."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / seconds(lambda: a @ b, device, least)


def alone(base: BaseModel, trial: TrialConfig, rows: list[Encoded], least: float) -> float:
    """Seconds of a step of PEFT by itself."""
    model = add_adapter(base.model, trial.lora, "completion", base.heads, trial.seed)
    try:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        batch = batch_of(trial, rows[: trial.train.batch_size], 2)
        inputs = {name: batch[name].to(base.device) for name in ("input_ids", "attention_mask", "labels")}
        model.train()

        def step() -> None:
            with base.arithmetic():
                loss = model(**inputs).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return seconds(step, base.device, least)
    finally:
        remove_adapter(model)


def packed(base: BaseModel, precision: str, setting: Setting, rows: list[Encoded], least: float) -> dict[str, float]:
    """Seconds of a step of all slots; extra bytes of a slot as predicted and as measured."""
    pack = Pack(base, "completion")
    budget = measure(pack, make_slot(base, make_trial(0, precision, setting), rows))
    slots = [make_slot(base, make_trial(i, precision, setting), rows) for i in range(setting.slots)]
    kept, held = [], []
    try:
        for n, slot in enumerate(slots, start=1):
            pack.add(slot)
            if n in (1, setting.slots):
                batches = [s.next_batch() for s in pack.slots]
                pack.run_pass(pack.slots, batches)
                adapters = [parameter for s in pack.slots for _, parameter in s.parameters()]
                kept.append(kept_bytes(partial(pack.run_pass, pack.slots, batches), base, adapters))
                held.append(held_bytes(pack.slots))
                for each in pack.slots:
                    each.forget_micro_steps()
        took = seconds(pack.step, base.device, least)
        others = slots[1:]
        predicted = budget.pack_bytes([slot.trial for slot in slots]) - budget.pack_bytes([slots[0].trial])
        measured = kept[-1] - kept[0] + held[-1] - held[0]
        parameters = sum(p.numel() for slot in slots for _, p in slot.parameters()) / len(slots)
    finally:
        for slot in list(pack.slots):
            pack.remove(slot)
    return {
        "seconds": took,
        "predicted": predicted / max(1, len(others)),
        "measured": measured / max(1, len(others)),
        "adapter": parameters,
        "auto": budget.slots(slots[0].trial),
    }


def table(shape: str, precision: str, settings: list[Setting], folder: Path, least: float) -> None:
    base = load(shape, precision, folder)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    peak = fastest(base.device, dtype, least)
    parameters = base.model.num_parameters()
    print(f"\n{shape}, {precision}, {base.device}: {parameters / 1e6:.0f} M parameters, peak {peak / 1e12:.2f} Top/s")
    print("  K rows tokens  tokens/s    alone  ratio  used  extra MB a slot: predicted measured  auto")
    known: dict[tuple[int, int, int], float] = {}  # rows, tokens, rank → seconds
    for setting in settings:
        rows = encoded(setting.tokens)
        trials = [make_trial(i, precision, setting) for i in range(setting.slots)]
        for trial in trials:
            place = (setting.rows, setting.tokens, trial.lora.rank)
            if place not in known:
                known[place] = alone(base, trial, rows, least)
        one_by_one = sum(known[setting.rows, setting.tokens, trial.lora.rank] for trial in trials)
        try:
            found = packed(base, precision, setting, rows, least)
        except torch.OutOfMemoryError:
            print(f"{setting.slots:3} {setting.rows:4} {setting.tokens:6}  out of memory", flush=True)
            gc.collect()
            torch.cuda.empty_cache()
            continue
        tokens = setting.slots * setting.rows * setting.tokens
        rate, rate_alone = tokens / found["seconds"], tokens / one_by_one
        used = rate * (4 * parameters + 6 * found["adapter"]) / peak
        extra = "" if setting.slots == 1 else f"{found['predicted'] / 1e6:27.1f} {found['measured'] / 1e6:8.1f}"
        auto = "auto" if setting.slots <= found["auto"] else ""
        line = f"{setting.slots:3} {setting.rows:4} {setting.tokens:6}{rate:10.0f}{rate_alone:9.0f}"
        print(f"{line}{rate / rate_alone:7.2f}{used:6.0%}{extra:36}  {auto}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["tiny"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--slots", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--tokens", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--least", type=float, default=0.3, help="seconds that each figure is measured for")
    parser.add_argument("--threads", type=int, help="of a CPU; default: all")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = [Setting(k, n, t) for t in options.tokens for n in options.rows for k in options.slots]
    with tempfile.TemporaryDirectory(prefix="bench-pack-") as name:
        for shape in options.shapes:
            for precision in options.precisions:
                table(shape, precision, settings, Path(name), options.least)
                gc.collect()


if __name__ == "__main__":
    main()
