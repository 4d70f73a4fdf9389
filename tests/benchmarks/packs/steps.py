"""A step of a pack and of PEFT by itself, on models with random weights: how long it takes and what memory it wants."""

import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaConfig

from analysis.errors import first_line
from analysis.folder import State, TrialFolder
from tests.conftest import _tokenizer
from tests.trainer.packs import held_bytes
from trainer.config import DataConfig, LoraSettings, ModelConfig, TrainConfig, TrialConfig
from trainer.data.encode import Encoded
from trainer.engines.pack import Pack
from trainer.engines.slot import Slot
from trainer.engines.slot_budget import SlotBudget, kept_bytes, measure, time_of
from trainer.evaluation.evaluate import Validation
from trainer.models.base_model import BaseModel, best_device, load_base, quiet
from trainer.models.lora import add_adapter, remove_adapter
from trainer.outcomes import out_of_memory

RANKS = (4, 64, 8, 32, 16)
OUT_OF_MEMORY = "out of memory"
Result = TypeVar("Result")


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
    "dry": lambda: llama(32, 64, 2, 2, 1, 64, True),
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


@dataclass(frozen=True)
class Alone:
    """Seconds of a step of PEFT by itself: as it is, and with logits only where the loss is, as a pack has them."""

    peft: float
    loss_positions: float


@dataclass
class Packed:
    """A step of a whole pack.

    Attributes:
        seconds: of a step; None where it did not run.
        predicted: bytes that a further slot takes, as the plan for ``slots: auto`` says.
        measured: bytes that it took.
        peak: bytes at the most in the timed steps (GPUs).
        adapter: parameters of a slot in the mean.
        auto: slots that ``slots: auto`` would choose at most.
        pass_tokens: most tokens of a pass, where memory made passes smaller than before.
    """

    seconds: float | None = None
    predicted: float | None = None
    measured: float | None = None
    peak: int | None = None
    adapter: float | None = None
    auto: int | None = None
    pass_tokens: int | None = None


def attempt(stage: str, work: Callable[[], Result], failed: dict[str, str], device: torch.device) -> Result | None:
    """What a piece of work gives; None where it failed, and why in ``failed``. What it held is freed.

    Args:
        stage: what it is called in ``failed``.
        work: does it.
        failed: stage → why, ``OUT_OF_MEMORY`` or the error.
        device: whose memory it uses.

    Raises:
        RuntimeError: where the device does not answer any more.
    """
    try:
        return work()
    except Exception as error:
        failed[stage] = OUT_OF_MEMORY if out_of_memory(error) else f"{type(error).__name__}: {first_line(error)}"
        traceback.clear_frames(error.__traceback__)  # they hold the tensors for which there was no room
    free(device)
    return None


def free(device: torch.device) -> None:
    """Give memory that nothing holds any more back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def load(shape: str, precision: str, folder: Path) -> BaseModel:
    """Random weights, through the same door as real ones.

    Args:
        shape: one of SHAPES.
        precision: one of PRECISIONS.
        folder: where the model is kept, for the next precision.
    """
    where = save(shape, folder)
    return load_base(ModelConfig(source="local", path=str(where)), precision, "completion", (), best_device())


def save(shape: str, folder: Path) -> Path:
    """The folder of a model with random weights and a tokenizer, made if it is not there."""
    where = folder / shape
    if not where.exists():
        quiet()
        where.mkdir(parents=True)
        _tokenizer(where)
        torch.manual_seed(0)
        with torch.device(best_device()):
            dtype = torch.float32 if shape in ("dry", "tiny") else torch.bfloat16
            AutoModelForCausalLM.from_config(SHAPES[shape](), dtype=dtype).save_pretrained(where)
        free(best_device())
    return where


def make_trial(i: int, precision: str, setting: Setting, dropout: float = 0.0) -> TrialConfig:
    return TrialConfig(
        trial_id=f"t{i}",
        seed=i,
        precision=precision,
        data=DataConfig(max_length=setting.tokens),
        lora=LoraSettings(rank=RANKS[i % len(RANKS)], targets="all_linear", dropout=dropout),
        train=TrainConfig(max_steps=10**6, batch_size=setting.rows, rungs=[10**6]),
    )


def encoded(tokens: int) -> list[Encoded]:
    """Rows of equal length, the loss on a quarter of each."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(4, 25, (64, tokens), generator=draw).tolist()
    cut = tokens - tokens // 4
    return [Encoded(tuple(row[:cut]), 0, tuple(row[cut:]), tokens) for row in rows]


def make_slot(base: BaseModel, trial: TrialConfig, rows: list[Encoded]) -> Slot:
    nothing = Validation([], [], ("a", "b"), [], [])
    return Slot(trial, TrialFolder(Path("unused")), base, rows, nothing, lambda metrics: 0.0, None)


def step(pack: Pack) -> None:
    """A step of all slots. Raises where one of them ended in it."""
    for event in pack.step():
        if event.state is State.OUT_OF_MEMORY:
            raise torch.OutOfMemoryError(event.reason)
        raise RuntimeError(f"{event.trial_id} ended as {event.state}: {event.reason}")


def empty(pack: Pack) -> None:
    for slot in list(pack.slots):
        pack.remove(slot)


def seconds(work: Callable[[], Any], device: torch.device, least: float) -> float:
    """Of one call, after a first one: the median of calls that fill at least so many seconds, and no fewer than 3."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < least:
        times.append(time_of(work, device))
    return sorted(times)[len(times) // 2]


def fastest(device: torch.device, dtype: torch.dtype, least: float) -> float:
    """Operations a second of a large matrix product."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / seconds(lambda: a @ b, device, least)


def alone(base: BaseModel, trial: TrialConfig, rows: list[Encoded], least: float) -> Alone:
    """PEFT by itself, twice: with its own loss, which needs the logits of all positions, and with those of some.

    A pack has logits only where the loss is. That is worth having, but it is not what packing gives: only the second
    figure differs from a pack in nothing but being alone. Batches are on the device before the clock starts, for a
    pack they are made and copied while it runs.
    """
    _ = base.output  # tried out before there is an adapter
    model = add_adapter(base.model, trial.lora, "completion", base.heads, trial.seed)
    try:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        model.train()

        def one_step(loss_of: Callable[[], torch.Tensor]) -> None:
            with base.arithmetic():
                loss = loss_of()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()

        losses = alone_losses(base, model, rows[: trial.train.batch_size])
        return Alone(*(seconds(lambda loss=loss: one_step(loss), base.device, least) for loss in losses))
    finally:
        remove_adapter(model)


def alone_losses(base: BaseModel, model: Any, rows: list[Encoded]) -> tuple[Callable[[], torch.Tensor], ...]:
    """The same loss of a batch in two ways: PEFT's own, and with logits only where the loss is.

    Args:
        base: the base model.
        model: PEFT's, around it.
        rows: of equal length.
    """
    ids = torch.tensor([row.context + row.completion for row in rows])
    labels = torch.tensor([(-100,) * len(row.context) + row.completion for row in rows])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    inputs = {name: tensor.to(base.device) for name, tensor in batch.items()}
    targets = labels.roll(-1, 1)  # (rows, tokens): the token that each position predicts
    targets[:, -1] = -100
    bears_loss = (targets != -100).flatten()
    places = bears_loss.nonzero()[:, 0].to(base.device)
    chosen = targets.flatten()[bears_loss].to(base.device)

    def of_all() -> torch.Tensor:
        loss: torch.Tensor = model(**inputs).loss
        return loss

    def of_some() -> torch.Tensor:
        hidden = base.output.hidden(inputs["input_ids"], inputs["attention_mask"]).flatten(0, 1)
        return cross_entropy(base.output.logits(hidden.index_select(0, places)).float(), chosen)

    return of_all, of_some


def packed(
    base: BaseModel, precision: str, setting: Setting, rows: list[Encoded], least: float, failed: dict[str, str]
) -> Packed:
    """A pack of that many slots; what fails of it is left out, and named in ``failed``."""
    found = Packed()
    trials = [make_trial(i, precision, setting) for i in range(setting.slots)]
    pack = Pack(base, "completion")
    full_pass = pack.pass_tokens
    kept: dict[int, int] = {}
    held: dict[int, int] = {}

    def memory() -> None:
        step(pack)  # the first allocates what stays
        adapters = [parameter for slot in pack.slots for _, parameter in slot.parameters()]
        kept[len(pack.slots)] = kept_bytes(lambda: step(pack), base, adapters)
        held[len(pack.slots)] = held_bytes(pack.slots)

    def fill() -> bool:
        for n, trial in enumerate(trials, start=1):
            pack.add(make_slot(base, trial, rows))
            if n == 1 < setting.slots:
                attempt("memory of one slot", memory, failed, base.device)
        return True

    def probe() -> SlotBudget:
        try:
            return measure(pack, make_slot(base, trials[0], rows))
        finally:
            empty(pack)

    budget = attempt("probe", probe, failed, base.device)
    try:
        if attempt("adding slots", fill, failed, base.device):
            parameters = [p.numel() for slot in pack.slots for _, p in slot.parameters()]
            found.adapter = sum(parameters) / setting.slots
            attempt("memory", memory, failed, base.device)
            if base.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(base.device)
            found.seconds = attempt(
                "packed", lambda: seconds(lambda: step(pack), base.device, least), failed, base.device
            )
            if base.device.type == "cuda":
                found.peak = torch.cuda.max_memory_allocated(base.device)
    finally:
        empty(pack)
        free(base.device)
    others = setting.slots - 1
    if budget is not None:
        found.auto = budget.slots(trials[0])
        if others:
            found.predicted = (budget.pack_bytes(trials) - budget.pack_bytes(trials[:1])) / others
    if others and kept.keys() >= {1, setting.slots}:
        found.measured = (kept[setting.slots] - kept[1] + held[setting.slots] - held[1]) / others
    if pack.pass_tokens != full_pass:
        found.pass_tokens = pack.pass_tokens
    return found
