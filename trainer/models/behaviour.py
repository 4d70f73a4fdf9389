"""How a loaded base model treats its rows, found by running it on a few tokens: no list of architectures is complete.

Four questions: does a completion model look ahead, does anything in it draw random numbers, does a row depend on the
rows beside it, and which rows does each linear layer see? A pack sends each row through its own slot's adapters, so it
needs the answer to the last one.
"""

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from analysis.errors import ModelError, first_line

ROWS, TOKENS, SHORT = 3, 7, 4  # of the batch that is tried; no two are equal, so that a shape says what is what
_CHANGED, _OTHERS = 1, [0, 2]  # the row whose last token is another one in the second batch; the others
_REPEATS = 16  # of a pass that draws random numbers, to see whether they change anything
# Two passes of one shape are rounded alike: a share of the outputs' size, and how many times what others moved.
_EXACT, _TIMES = 1e-6, 8.0
_MOVED = 0.02  # share of the largest change from which on a position counts as changed
# Share of the outputs' size by which rounding may change them, in float32 and below it. The same product of other
# neighbours is rounded the same; a batch of another shape is summed in another order.
_ROUNDING, _SUSPECT, _RESHAPED = (1e-4, 0.02), (1e-3, 0.02), (1e-3, 0.1)


@dataclass(frozen=True)
class Behaviour:
    """What a pack needs to know of its base model.

    Attributes:
        tokens_first: linear layers whose input is (tokens, rows, features).
        shared: linear layers that are applied, also, to something that all rows share, or to tokens of several rows
            mixed, as (…, features).
        by_slot: module that must run once for each slot, as it has such layers → which of its arguments have a row for
            each row of the batch, by place or name. Its results have.
        mixed: those of ``shared`` whose input depends on the rows.
        refusal: why packs cannot hold this model, and what to do; empty where they can.
        needs_mask: whether rows that are padded on the right come out otherwise without an attention mask. They do not
            where each token sees those before it alone; and without a mask a GPU has faster kernels.
    """

    tokens_first: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()
    by_slot: Mapping[str, frozenset[int | str]] = field(default_factory=dict)
    mixed: frozenset[str] = frozenset()
    refusal: str = ""
    needs_mask: bool = True

    def layout(self, layer: str) -> str:
        """How a linear layer's input holds the rows: ``rows``, ``tokens_first`` or ``shared``."""
        return "tokens_first" if layer in self.tokens_first else "shared" if layer in self.shared else "rows"


PLAIN = Behaviour()  # of a model whose layers all see rows


def try_out(
    model: PreTrainedModel,
    task: str,
    heads: frozenset[str],
    tokens: Sequence[int],
    ending: Sequence[int],
    pad_token: int,
    arithmetic: Callable[[], contextlib.AbstractContextManager[Any]],
) -> Behaviour:
    """Run a base model on a few tokens and see how it treats its rows.

    Random number generators and the model are left as they were, but for the base model's own dropout, which is turned
    off: the model is frozen, and its masks would depend on the order of calls. What ``lora.dropout`` asks for is
    applied to the adapters, with masks that depend on the trial alone.

    Args:
        model: frozen.
        task: ``completion`` or ``classification``.
        heads: names of its task heads.
        tokens: ids of ordinary tokens, at least two.
        ending: ids of the tokens that the tokenizer puts at a row's end, at most two.
        pad_token: id of the padding.
        arithmetic: the autocast context of a forward pass.

    Raises:
        ModelError: where the model cannot be run on plain rows, or looks ahead under ``completion``.
    """
    with _left_alone(model), torch.no_grad():
        try:
            trial = _Trial(model, task, heads, tokens, ending, pad_token, arithmetic)
            return trial.behaviour()
        except Exception as error:  # of the model's own code, which may raise anything
            if isinstance(error, (ModelError, MemoryError)) or "memory" in str(error):
                raise
            raise ModelError(
                f"{type(model).__name__} cannot be run on rows of tokens with an attention mask, which is all that"
                f" task={task} gives a model: {first_line(error).rstrip('.')}. Use another model."
            ) from error


class _Trial:
    """The passes over one model, and what they show."""

    def __init__(
        self,
        model: PreTrainedModel,
        task: str,
        heads: frozenset[str],
        tokens: Sequence[int],
        ending: Sequence[int],
        pad_token: int,
        arithmetic: Callable[[], contextlib.AbstractContextManager[Any]],
    ):
        from trainer.models.lora import linear_modules  # PEFT takes seconds, and who asks for precisions has no use

        self.model, self.task, self.heads, self.arithmetic = model, task, heads, arithmetic
        end = list(ending) if task == "classification" else []

        def batch(first: int) -> torch.Tensor:
            text = [tokens[(first + i) % len(tokens)] for i in range(ROWS * TOKENS)]
            rows = [text[r * TOKENS : (r + 1) * TOKENS - len(end)] + end for r in range(ROWS)]
            rows[-1] = rows[-1][: SHORT - len(end)] + end + [pad_token] * (TOKENS - SHORT)  # shorter, and padded
            return torch.tensor(rows, device=model.device)

        self.ids, self.different = batch(0), batch(1)
        self.mask = torch.ones_like(self.ids)
        self.mask[-1, SHORT:] = 0
        self.place = TOKENS - 1 - len(end)  # of the token that is another one in the second batch
        others = [token for token in tokens if token != int(self.ids[_CHANGED, self.place])]
        self.changed = self.ids.clone()
        self.changed[_CHANGED, self.place] = others[len(others) // 2]
        self.layers = linear_modules(model, heads)
        with arithmetic():
            autocast = torch.is_autocast_enabled(model.device.type)
        self.coarse = autocast or model.dtype is not torch.float32 or bool(getattr(model, "is_quantized", False))

    def behaviour(self) -> Behaviour:
        model, name = self.model, type(self.model).__name__
        before = list(model.modules())
        model.eval()
        scores = self.logits(self.ids, self.mask)
        if self.task == "completion" and self.looks_ahead(scores):
            raise ModelError(
                f"{name} attends both ways: another token at the end of a row changes what it predicts before it, so"
                " task=completion would score it on what it has seen. Use task=classification, or a decoder."
            )
        for module in (*before, *model.modules()):
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
        self.switch_off(model.modules(), scores)
        if before != list(model.modules()):
            self.switch_off(configs(model), scores)
            return Behaviour(
                refusal=f"{name} replaces layers of its own by the length of its rows, which adapters on them do not"
                " survive in a pack. Use engine=hf, which trains one trial at a time."
            )
        return self.in_training(scores)

    def in_training(self, scores: torch.Tensor) -> Behaviour:
        """The same once dropout is off, from passes in training mode."""
        model, name = self.model, type(self.model).__name__
        model.train()
        first, inputs = self.recorded(self.ids, self.mask)
        if not self.repeats(first):
            self.switch_off(configs(model), scores)  # some layers ask the config each time
            model.train()
            first, inputs = self.recorded(self.ids, self.mask)
            if not self.repeats(first):
                return Behaviour(
                    refusal=f"{name} draws random numbers in training that cannot be switched off, so trials of a pack"
                    " would depend on each other. Use engine=hf, which trains one trial at a time."
                )
        second, changed = self.recorded(self.changed, self.mask)
        alone, short = self.recorded(self.ids[-1:, :SHORT], self.mask[-1:, :SHORT])
        padded = first[-1:, :SHORT] if self.task == "completion" else first[-1:]
        # a model that could see padding, but finds zeros there as beyond a row's end, is given less room for rounding
        room = _SUSPECT if self.sees_padding(first) else _RESHAPED
        if self.differ(first[_OTHERS], second[_OTHERS], first) or self.differ(padded, alone, first, room):
            return Behaviour(
                refusal=f"with {name} what a row yields depends on the rows or the padding beside it, so trials of a"
                " pack would depend on each other. Use engine=hf, which trains one trial at a time."
            )
        return replace(self.routes(inputs, changed, short), needs_mask=self.needs_mask(first))

    def needs_mask(self, first: torch.Tensor) -> bool:
        """Whether the padded row's outputs are others without a mask.

        Args:
            first: the outputs of the batch with its mask.
        """
        try:
            bare = self.logits(self.ids, None)
        except Exception:  # of the model's own code, which may raise anything
            return True
        if self.task == "completion":
            first, bare = first[:, :SHORT], bare[:, :SHORT]
        return bare.shape != first.shape or self.differ(first, bare, first)

    def looks_ahead(self, scores: torch.Tensor) -> bool:
        """Whether the last token of a row changes what is predicted before it."""
        moved = (self.logits(self.changed, self.mask) - scores).abs()
        return self.stands_out(moved[_CHANGED, : self.place], moved[_OTHERS], scores)

    def sees_padding(self, first: torch.Tensor) -> bool:
        """Whether a padded row's outputs depend on what stands at its masked places.

        Args:
            first: the outputs of the batch.
        """

        def disturb(embedding: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            if output.shape[:2] != self.ids.shape:
                return output
            output = output.clone()
            output[-1, SHORT:] += output.abs().mean() * torch.arange(output.shape[-1], device=output.device).cos()
            return output

        embeddings: Any = self.model.get_input_embeddings()
        hook = embeddings.register_forward_hook(disturb)
        try:
            moved = (self.logits(self.ids, self.mask) - first).abs()
        finally:
            hook.remove()
        return self.stands_out(moved[-1, :SHORT] if self.task == "completion" else moved[-1], moved[:-1], first)

    def stands_out(self, moved: torch.Tensor, beside: torch.Tensor, like: torch.Tensor) -> bool:
        """Whether outputs that should have stayed moved more than rounding moved those of rows that nothing changed.

        With most models these do not move at all. Where tokens are grouped by expert, others are rounded otherwise.

        Args:
            moved: how far the outputs in question moved.
            beside: how far those of the other rows moved.
            like: all outputs of the pass.
        """
        exact = _EXACT * self.size(like)
        return bool(moved.nan_to_num().max() > torch.maximum(_TIMES * beside.nan_to_num().max(), exact))

    def switch_off(self, owners: Iterable[Any], scores: torch.Tensor) -> None:
        """Set numbers to 0 that are named as probabilities of dropout, unless that changes the scores, (rows, …)."""
        numbers = [
            (owner, name, value)
            for owner in owners
            for name, value in vars(owner).items()
            if isinstance(value, float) and 0.0 < value < 1.0 and "drop" in name.lower()
        ]
        for owner, name, _ in numbers:
            setattr(owner, name, 0.0)
        self.model.eval()
        if numbers and self.differ(scores, self.logits(self.ids, self.mask), scores):
            for owner, name, value in numbers:
                setattr(owner, name, value)

    # --- passes

    def logits(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(rows, tokens, vocabulary) or (rows, classes), float32."""
        options = {"use_cache": False} if self.task == "completion" else {}
        with self.arithmetic():
            logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, **options).logits
        return logits.float()

    def recorded(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
        """The logits of a pass, and the inputs of each call of each linear layer and head."""
        seen: dict[str, list[torch.Tensor]] = {name: [] for name in (*self.layers, *self.heads)}
        hooks = [
            self.model.get_submodule(name).register_forward_pre_hook(
                lambda module, inputs, calls=calls: calls.append(inputs[0].detach())  # type: ignore[misc]
            )
            for name, calls in seen.items()
        ]
        try:
            return self.logits(ids, mask), seen
        finally:
            for hook in hooks:
                hook.remove()

    def repeats(self, first: torch.Tensor) -> bool:
        """Whether the same pass gives the same again; it is repeated only where something draws random numbers."""
        before = _generators(self.model.device)
        again = self.logits(self.ids, self.mask)
        if _equal(before, _generators(self.model.device)):
            return True
        passes = [again, *(self.logits(self.ids, self.mask) for _ in range(_REPEATS))]
        return all(bool((first - other).nan_to_num().abs().max() <= _EXACT * self.size(first)) for other in passes)

    def size(self, outputs: torch.Tensor) -> torch.Tensor:
        """How far outputs are from their mean over the last dimension, at most."""
        return (outputs - outputs.mean(-1, keepdim=True)).nan_to_num().abs().max()

    def differ(
        self, a: torch.Tensor, b: torch.Tensor, like: torch.Tensor, share: tuple[float, float] = _ROUNDING
    ) -> bool:
        """Whether two outputs differ by more than a share of the size of a pass's outputs."""
        difference = (a.nan_to_num() - b.nan_to_num()).abs().max()  # what is not finite is for the training to tell
        return bool(difference > share[self.coarse] * self.size(like))

    # --- which rows a layer sees

    def routes(
        self,
        inputs: Mapping[str, list[torch.Tensor]],
        changed: Mapping[str, list[torch.Tensor]],
        short: Mapping[str, list[torch.Tensor]],
    ) -> Behaviour:
        """How each layer's input holds the rows, told from those of three passes.

        Args:
            inputs: layer or head → its inputs, one a call, in a pass over a batch.
            changed: the same with another token in one row.
            short: the same of one row alone.
        """
        tokens_first, unclear = set(), set()
        for name, calls in inputs.items():
            kinds = [_kind(call) for call in calls]
            regular = len(calls) == len(changed[name]) == len(short[name])
            regular = regular and all(_alone(x, kind) for x, kind in zip(short[name], kinds, strict=True))
            if regular and set(kinds) <= {"rows", "flat"} and _follow(calls, changed[name]):
                continue
            if regular and set(kinds) == {"tokens first"} and _follow(_turned(calls), _turned(changed[name])):
                tokens_first.add(name)
                continue
            unclear.add(name)
        heads = sorted(unclear & self.heads | tokens_first & self.heads)
        by_slot = self.by_slot(sorted(unclear - self.heads)) if unclear - self.heads and not heads else {}
        lost = heads or sorted(n for n in unclear if not any(n.startswith(f"{module}.") for module in by_slot))
        if lost:
            return Behaviour(
                refusal=f"{type(self.model).__name__} applies '{lost[0]}' to something else than its rows, which a pack"
                " cannot divide among its trials. Use engine=hf, which trains one trial at a time."
            )
        different = self.recorded(self.different, self.mask)[1] if unclear else {}
        mixed = {name for name in unclear if not _shared(inputs[name], different[name])}
        return Behaviour(frozenset(tokens_first), frozenset(unclear), by_slot, frozenset(mixed))

    def by_slot(self, layers: Sequence[str]) -> dict[str, frozenset[int | str]]:
        """For each layer the innermost module around it that takes and gives rows: its arguments that have the rows."""
        around = {name.rsplit(".", i)[0] for name in layers for i in range(1, name.count(".") + 1)}
        whole, alone = (
            self.calls(around, *batch)
            for batch in ((self.ids, self.mask), (self.ids[-1:, :SHORT], self.mask[-1:, :SHORT]))
        )
        divided: dict[str, frozenset[int | str]] = {}
        for layer in layers:
            outer = [layer.rsplit(".", i)[0] for i in range(1, layer.count(".") + 1)]
            for name in outer:
                if name in divided:
                    break
                arguments = _divisible(whole.get(name), alone.get(name))
                if arguments is not None:
                    divided[name] = arguments
                    break
        return {name: a for name, a in divided.items() if not any(name.startswith(f"{n}.") for n in divided)}

    def calls(self, names: set[str], ids: torch.Tensor, mask: torch.Tensor) -> "dict[str, list[_Call]]":
        """The arguments and results of every call of some modules in a pass."""
        seen: dict[str, list[_Call]] = {name: [] for name in names}
        hooks = [
            self.model.get_submodule(name).register_forward_hook(
                lambda module, inputs, named, output, calls=calls: calls.append(  # type: ignore[misc]
                    ({**dict(enumerate(inputs)), **named}, output)
                ),
                with_kwargs=True,
            )
            for name, calls in seen.items()
        ]
        try:
            self.logits(ids, mask)
        finally:
            for hook in hooks:
                hook.remove()
        return seen


_Call = tuple[dict[int | str, Any], Any]  # arguments by place or name, and the result


def _kind(x: torch.Tensor) -> str:
    """How an input holds the rows of the batch, by its shape: (rows, …), (rows · tokens, d) or (tokens, rows, d).

    There may be other tokens than those of the batch: some models pad them to a multiple, or pick some.
    """
    if x.dim() == 2 and len(x) == ROWS * TOKENS:
        return "flat"
    if len(x) == ROWS:
        return "rows"
    return "tokens first" if x.dim() > 2 and x.shape[1] == ROWS else ""


def _alone(x: torch.Tensor, kind: str) -> bool:
    """Whether an input is of that kind in a batch of one row of ``SHORT`` tokens, too."""
    if kind == "flat":
        return x.dim() == 2 and len(x) == SHORT
    return len(x) == 1 if kind == "rows" else kind != "" and x.dim() > 2 and x.shape[1] == 1


def _turned(calls: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [call.transpose(0, 1) for call in calls]


def _follow(calls: Sequence[torch.Tensor], changed: Sequence[torch.Tensor]) -> bool:
    """Whether only the changed row of each input changed, where its first dimension is the rows, or rows · tokens."""
    for before, after in zip(calls, changed, strict=True):
        moved = (after - before).float().abs().amax(-1).reshape(ROWS, -1).amax(-1)  # (rows,)
        if float(moved.max()) > 0 and (moved > _MOVED * moved.max()).nonzero().flatten().tolist() != [_CHANGED]:
            return False
    return True


def _shared(calls: Sequence[torch.Tensor], different: Sequence[torch.Tensor]) -> bool:
    """Whether what is not the rows themselves is the same for all: what a batch of other tokens does not change."""
    odd = [i for i, call in enumerate(calls) if _kind(call) not in ("rows", "flat")]
    return (
        len(calls) == len(different)
        and bool(odd)
        and all(calls[i].shape == different[i].shape and torch.equal(calls[i], different[i]) for i in odd)
    )


def _divisible(whole: "list[_Call] | None", alone: "list[_Call] | None") -> frozenset[int | str] | None:
    """The arguments of a module that have the rows; None where it cannot be run on some of the rows.

    Args:
        whole: its calls in a pass over all rows.
        alone: its calls in a pass over one row.
    """
    if not whole or not alone or len(whole) != len(alone):
        return None
    divided: set[int | str] = set()
    for (arguments, result), (of_one, result_of_one) in zip(whole, alone, strict=True):
        if arguments.keys() != of_one.keys():
            return None
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor):
                if _by_row(value, of_one[name]):
                    divided.add(name)
            elif value is not None and not isinstance(value, (bool, int, float, str)):
                return None  # such as a cache
        results = result if isinstance(result, tuple) else (result,)
        results_of_one = result_of_one if isinstance(result_of_one, tuple) else (result_of_one,)
        for value, of_one_value in zip(results, results_of_one, strict=True):
            if value is not None and not (isinstance(value, torch.Tensor) and _by_row(value, of_one_value)):
                return None
    return frozenset(divided) or None


def _by_row(value: torch.Tensor, of_one: Any) -> bool:
    return isinstance(of_one, torch.Tensor) and value.dim() > 0 and len(value) == ROWS and len(of_one) == 1


# --- leaving everything as it was


def configs(model: nn.Module) -> Iterable[Any]:
    """Every config that a model or a part of it has, each once."""
    found = [getattr(module, "config", None) for module in model.modules()]
    return {id(config): config for config in found if config is not None}.values()


@contextlib.contextmanager
def _left_alone(model: PreTrainedModel) -> Iterator[None]:
    """Put random number generators, layers, training flags and buffers, such as a running mean, back afterwards."""
    training = [(module, module.training) for module in model.modules()]
    built = [(module, dict(module._modules), _words(module)) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    numbers, numpy_numbers, device = random.getstate(), np.random.get_state(), model.device
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(numbers)
        np.random.set_state(numpy_numbers)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for module, layers, words in built:
            if module._modules != layers:
                module._modules.update(layers)
            vars(module).update(words)
        for module, mode in training:
            module.training = mode


def _words(module: nn.Module) -> dict[str, str]:
    """Which way of several a module works, such as ``attention_type``."""
    return {name: value for name, value in vars(module).items() if isinstance(value, str)}


def _generators(device: torch.device) -> tuple[Any, ...]:
    """The state of every generator that a model may draw from."""
    of_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.empty(0)
    of_numpy = np.random.get_state(legacy=False)["state"]
    return torch.get_rng_state(), of_gpu, of_numpy["key"].tobytes(), of_numpy["pos"], random.getstate()


def _equal(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))
