"""One batched scorer of log-likelihoods and classes, shared by labels, perplexity and bias.

Rows are padded on the right, where a causal model does not see the padding, and batched by length. A request whose
input is the beginning of another's shares its row: all single-token labels of a prompt, and the prompt's own
perplexity, cost one row. Slots of a pack that have the same requests are scored in one forward pass over the base model
(``Together``).
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from trainer.models.base_model import BaseModel
from trainer.models.lm_head import TokenLogits
from trainer.outcomes import out_of_memory

# Tokens of a forward pass, padding included, at most. More would be no faster, and all are in memory at once.
_PASS = {"cpu": 1 << 13, "cuda": 1 << 18}
_LOGITS = 1 << 27  # numbers of a chunk of logits, (positions, vocabulary), at most: 512 MiB in float32


@dataclass(frozen=True)
class Request:
    """The log-probability of ``tokens[start:]`` given ``tokens[:start]``; ``start`` is at least 1."""

    tokens: tuple[int, ...]
    start: int


# A context for a forward pass: sends its rows, sorted by slot, through the slots' adapters. Called with the number of
# rows of each slot, which may be 0.
Route = Callable[[Sequence[int]], AbstractContextManager[None]]
# A computation over the base model: the number of slots, and the context for its passes → a result for each slot.
Compute = Callable[[int, Route], list[Any]]


class Together:
    """Slots of one base model that are scored at the same time.

    Each slot is scored by code that knows of that slot alone. When the first one needs a computation, it is made for
    all slots, in one forward pass over the base model; the others get their result from memory.

    Args:
        places: the slots' places in their pack.
        route: places, and the number of rows of each → a context for a forward pass that sends these rows, sorted by
            place, through the adapters at the places.
    """

    def __init__(
        self, places: Sequence[int], route: Callable[[Sequence[int], Sequence[int]], AbstractContextManager[None]]
    ):
        self.places, self.route = tuple(places), route
        self._results: dict[Hashable, list[Any]] = {}  # computation → result of each slot
        self._one_by_one: set[Hashable] = set()  # computations that failed for all slots together

    def result(self, place: int, key: Hashable, compute: Compute) -> Any:
        """The result of a computation for one slot.

        Args:
            place: of the slot.
            key: what is computed: the same key means the same computation, which is made once for all slots.
            compute: the computation. Where it fails for all slots together, it is made for this one alone, so that an
                error is that slot's own.
        """
        if key not in self._results and key not in self._one_by_one:
            try:
                self._results[key] = compute(len(self.places), partial(self.route, self.places))
            except Exception:
                if len(self.places) == 1:
                    raise
                self._one_by_one.add(key)
        if key in self._one_by_one:
            return compute(1, partial(self.route, [place]))[0]
        return self._results[key][self.places.index(place)]


class SlotModel(torch.nn.Module):
    """The base model with one slot's adapter, for scoring: ``evaluate`` takes it as any other model.

    Args:
        model: the base model.
        place: the slot's place in its pack.
        together: the slots that are scored with it.
    """

    def __init__(self, model: torch.nn.Module, place: int, together: Together):
        super().__init__()
        self.model, self.place, self.together = model, place, together

    def forward(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        with self.together.route([self.place], [len(input_ids)]):
            return self.model(input_ids=input_ids, **inputs)


def computed(model: torch.nn.Module, key: Hashable, compute: Compute) -> Any:
    """The result of a computation for a model; for a slot, together with the slots that are scored with it.

    Args:
        model: the base model, the same with an adapter, or a slot of a pack.
        key: of the computation (``Together.result``).
        compute: the computation.
    """
    if isinstance(model, SlotModel):
        return model.together.result(model.place, key, compute)
    return compute(1, lambda rows: nullcontext())[0]


def inner_model(base: BaseModel, model: torch.nn.Module) -> torch.nn.Module:
    """The model that holds the adapters: the base model, or a copy of it.

    Args:
        base: the base model.
        model: the base model, the same with an adapter, or a slot of a pack.
    """
    if isinstance(model, SlotModel):
        return base.model
    return model.get_base_model() if isinstance(model, PeftModel) else model


def in_batches(
    base: BaseModel,
    order: Sequence[int],
    size: int,
    score: Callable[[list[int]], Any],
    keep: Callable[[list[int], Any], None],
) -> None:
    """Call ``score`` on ``size`` at a time; on half as many, and so on, where memory runs out.

    Several processes take a batch each: those that one process would make, so that the same is computed.

    Args:
        base: its processes.
        order: what to score.
        size: of a batch.
        score: called with a batch. A process for which there is no batch left does another's, since all must make as
            many passes.
        keep: called with a batch and its scores, in the one process whose batch it is.

    Raises what ``score`` raises, and MemoryError or its like where there is none for a single one.
    """
    at, ranks = 0, base.ranks
    while at < len(order):
        until = min(at + ranks.size * size, len(order))
        batches = [list(order[first : min(first + size, until)]) for first in range(at, until, size)]
        mine = ranks.rank if ranks.rank < len(batches) else 0
        error: Exception | None = None
        scores: Any = None
        try:
            scores = score(batches[mine])
        except (MemoryError, RuntimeError) as raised:
            if base.sharded or not out_of_memory(raised):  # of a sharded model the others wait in that pass
                raise
            error = raised.with_traceback(None)  # whose frames would hold the batch's tensors
        if not ranks.any_failed(error is not None):
            if mine == ranks.rank:
                keep(batches[mine], scores)
            at = until
            continue
        size = len(batches[0])
        if size == 1:
            raise error or MemoryError("out of memory in another process of the trial")
        size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@torch.inference_mode()
def log_likelihoods(
    base: BaseModel, model: torch.nn.Module, requests: Sequence[Request], batch_size: int
) -> list[list[float]]:
    """Log-probability, in nats, of each token that a request asks for.

    Args:
        base: arithmetic and padding token.
        model: the base model, the same with an adapter, or a slot of a pack; in evaluation mode.
        requests: any number, in any order.
        batch_size: rows a forward pass, of each slot, at most.

    Returns:
        For each request ``len(tokens) - start`` values.

    Raises:
        ValueError: for a request without context or without tokens to score.
    """
    for request in requests:
        if not 1 <= request.start < len(request.tokens):
            raise ValueError(
                "a request needs context and at least one token to score,"
                f" got start={request.start} of {len(request.tokens)}"
            )
    scores: list[list[float]] = computed(
        model,
        ("log-likelihoods", tuple(requests), batch_size),
        partial(_log_likelihoods, base, _token_logits(base, model), requests, batch_size),
    )
    return scores


def _rows_a_pass(base: BaseModel, batch_size: int, slots: int, rows: Sequence[tuple[int, ...]]) -> int:
    """Rows of each slot that go into a forward pass."""
    longest = max(map(len, rows), default=1)
    return min(batch_size, max(1, _PASS.get(base.device.type, 1 << 13) // (slots * longest)))


def _token_logits(base: BaseModel, model: torch.nn.Module) -> TokenLogits:
    inner: Any = inner_model(base, model)
    return base.output if inner is base.model else TokenLogits(replace(base, model=inner))


def _log_likelihoods(
    base: BaseModel, output: TokenLogits, requests: Sequence[Request], batch_size: int, slots: int, route: Route
) -> list[list[list[float]]]:
    """Log-probabilities by slot, request and token."""
    rows, row_of = _share_rows([request.tokens[:-1] for request in requests])
    requests_of: list[list[int]] = [[] for _ in rows]  # row → the requests that it answers
    for i, row in enumerate(row_of):
        requests_of[row].append(i)
    order = sorted(range(len(rows)), key=lambda r: -len(rows[r]))
    scores: list[list[list[float]]] = [[[] for _ in requests] for _ in range(slots)]

    def score(batch: list[int]) -> list[list[list[float]]]:
        of_rows = [[requests[i] for i in requests_of[r]] for r in batch]
        return _score_batch(base, output, [rows[r] for r in batch], of_rows, slots, route)

    def keep(batch: list[int], values: list[list[list[float]]]) -> None:
        numbers = [i for r in batch for i in requests_of[r]]
        for of_slot, new in zip(scores, values, strict=True):
            for i, value in zip(numbers, new, strict=True):
                of_slot[i] = value

    in_batches(base, order, _rows_a_pass(base, batch_size, slots, rows), score, keep)
    return scores if base.ranks.alone else [_of_all(base, requests, of_slot) for of_slot in scores]


def _of_all(base: BaseModel, requests: Sequence[Request], scores: list[list[float]]) -> list[list[float]]:
    """The scores of all processes, each of which has those of some requests."""
    counts = [len(request.tokens) - request.start for request in requests]
    mine = [value for values, n in zip(scores, counts, strict=True) for value in values or [0.0] * n]
    whole = base.ranks.sum_array(np.array(mine))
    return [part.tolist() for part in np.split(whole, np.cumsum(counts)[:-1])] if counts else []


def _share_rows(inputs: list[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """Distinct inputs that begin no other, and for each input the one that begins with it.

    In sorted order an input that begins another stands directly before one that it begins.
    """
    distinct = sorted(set(inputs))
    host = dict.fromkeys(distinct, -1)
    rows: list[tuple[int, ...]] = []
    for i in range(len(distinct) - 1, -1, -1):
        tokens = distinct[i]
        following = distinct[i + 1] if i + 1 < len(distinct) else ()
        if following[: len(tokens)] == tokens:
            host[tokens] = host[following]
        else:
            host[tokens] = len(rows)
            rows.append(tokens)
    return rows, [host[tokens] for tokens in inputs]


def _score_batch(
    base: BaseModel,
    output: TokenLogits,
    rows: list[tuple[int, ...]],
    of_rows: list[list[Request]],
    slots: int,
    route: Route,
) -> list[list[list[float]]]:
    """Log-probabilities by slot, request and token.

    Args:
        rows: tokens.
        of_rows: the requests that each row answers; results are in their order.
    """
    inputs = pad(rows, base.pad_token)
    ids = inputs["input_ids"].repeat(slots, 1).to(base.device)  # (slots · rows, longest)
    with base.arithmetic(), route([len(rows)] * slots):
        hidden = output.hidden(ids, None)
    hidden = hidden.view(slots, len(rows), *hidden.shape[1:])
    flat = [(r, request) for r, of_row in enumerate(of_rows) for request in of_row]
    positions = sorted({(r, p - 1) for r, request in flat for p in range(request.start, len(request.tokens))})
    number = {position: n for n, position in enumerate(positions)}
    # (position, token) of each log-probability; several requests may need the same position
    targets = [
        (number[r, p - 1], request.tokens[p]) for r, request in flat for p in range(request.start, len(request.tokens))
    ]
    size = max(1, _LOGITS // output.vocabulary)
    values = np.empty((slots, len(targets)))
    for k in range(slots):
        for at in range(0, len(positions), size):
            part = positions[at : at + size]
            at_rows, at_places = (torch.tensor(column, device=base.device) for column in zip(*part, strict=True))
            with base.arithmetic():
                logits = output.logits(hidden[k, at_rows, at_places]).float()  # (positions, vocabulary)
            here = [w for w, (n, _) in enumerate(targets) if at <= n < at + size]
            which = torch.tensor([targets[w][0] - at for w in here], device=base.device)
            tokens = torch.tensor([targets[w][1] for w in here], device=base.device)
            values[k, here] = (logits[which, tokens] - logits.logsumexp(1)[which]).double().cpu().numpy()
    ends = np.cumsum([len(request.tokens) - request.start for _, request in flat])[:-1]
    return [[part.tolist() for part in np.split(of_slot, ends)] for of_slot in values]


@torch.inference_mode()
def class_logprobs(
    base: BaseModel, model: torch.nn.Module, rows: Sequence[tuple[int, ...]], batch_size: int
) -> np.ndarray:
    """(rows, classes) log-probabilities of a task head, in the order given.

    Args:
        base: arithmetic and padding token.
        model: as for ``log_likelihoods``; with a task head.
        rows: tokens.
        batch_size: rows a forward pass, of each slot, at most.
    """
    logprobs: np.ndarray = computed(
        model,
        ("classes", tuple(rows), batch_size),
        partial(_class_logprobs, base, inner_model(base, model), rows, batch_size),
    )
    return logprobs


def _class_logprobs(
    base: BaseModel,
    model: torch.nn.Module,
    rows: Sequence[tuple[int, ...]],
    batch_size: int,
    slots: int,
    route: Route,
) -> list[np.ndarray]:
    """(rows, classes) log-probabilities of each slot."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    result = np.zeros((slots, len(rows), int(base.model.config.num_labels or 0)))

    def score(batch: list[int]) -> np.ndarray:
        inputs = pad([rows[i] for i in batch], base.pad_token)
        repeated = {name: part.repeat(slots, 1).to(base.device) for name, part in inputs.items()}
        with base.arithmetic(), route([len(batch)] * slots):
            logits = model(**repeated).logits
        logprobs: np.ndarray = logits.float().log_softmax(-1).view(slots, len(batch), -1).cpu().numpy()
        return logprobs

    def keep(batch: list[int], logprobs: np.ndarray) -> None:
        result[:, batch] = logprobs

    in_batches(base, order, _rows_a_pass(base, batch_size, slots, rows), score, keep)
    return list(base.ranks.sum_array(result))


def pad(rows: Sequence[tuple[int, ...]], pad_token: int) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``attention_mask``, (rows, longest), padded on the right."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_token)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for r, row in enumerate(rows):
        ids[r, : len(row)] = torch.tensor(row)
        mask[r, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}
