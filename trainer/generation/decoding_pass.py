"""Many answers written in one batch, token by token, with the caches that transformers keeps for a model.

``generate`` prepares a model's inputs, positions and caches; the loop is our own. An answer that has ended leaves the
batch: most are short, and one that does not end would keep all others in every pass. So the slots of a pack come to
have different numbers of rows, and the routing follows.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache, GenerationConfig

from trainer.generation.endings import Tokens
from trainer.likelihood.log_likelihood import Route
from trainer.models.base_model import BaseModel


@dataclass
class Line:
    """An answer in the making.

    Attributes:
        slot: number of the slot that writes it, among those that write together.
        prompt: number of its prompt in the batch.
        tokens: written so far, without one that ended it.
        ended: whether nothing more is to come.
        finished: whether it ended by itself.
    """

    slot: int
    prompt: int
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    finished: bool = False


# (rows, vocabulary) logits and the lines they are for → (rows,) the next token of each.
Choose = Callable[[torch.Tensor, Sequence[Line]], torch.Tensor]


@dataclass(frozen=True)
class Ends:
    """What ends an answer.

    Attributes:
        tokens: each of them ends any answer.
        complete: whether what is written so far is a whole answer: number of the prompt, and tokens.
        limits: most tokens of the answer to each prompt.
    """

    tokens: Collection[int]
    complete: Callable[[int, Tokens], bool]
    limits: Sequence[int]

    def take(self, line: Line, token: int) -> None:
        """Give an answer its next token."""
        if token in self.tokens:
            line.ended = line.finished = True
            return
        line.tokens.append(token)
        line.finished = self.complete(line.prompt, tuple(line.tokens))
        line.ended = line.finished or len(line.tokens) >= self.limits[line.prompt]


def decode(
    base: BaseModel,
    model: Any,
    prompts: Sequence[Tokens],
    slots: int,
    route: Route,
    settings: GenerationConfig,
    choose: Choose,
    ends: Ends,
) -> list[Line]:
    """The answers of all slots to all prompts, sorted by slot.

    Args:
        base: arithmetic and padding token; where it is sharded, passes go on until all processes' answers have ended.
        model: of transformers, which holds the adapters; in evaluation mode.
        prompts: none empty. They are padded on the left.
        slots: how many write answers.
        route: the context for a pass.
        settings: of ``generate``; of them, those that change logits count.
        choose: the next tokens, after what the settings ask for is done to the logits.
        ends: of the answers.
    """
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), base.pad_token)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for r, prompt in enumerate(prompts):
        ids[r, width - len(prompt) :] = torch.tensor(prompt)
        mask[r, width - len(prompt) :] = 1
    lines = [Line(slot, prompt) for slot in range(slots) for prompt in range(len(prompts))]

    def steps(
        model: Any, input_ids: torch.Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any,
        **inputs: Any,
    ) -> torch.Tensor:  # fmt: skip
        return _steps(base, model, input_ids, inputs, list(lines), slots, route, logits_processor, choose, ends)

    with base.arithmetic(), _without_defaults(base.model, settings):
        model.generate(
            input_ids=ids.repeat(slots, 1).to(base.device),
            attention_mask=mask.repeat(slots, 1).to(base.device),
            generation_config=settings,
            custom_generate=steps,
        )
    return lines


def _steps(
    base: BaseModel,
    model: Any,
    ids: torch.Tensor,
    inputs: dict[str, Any],
    lines: list[Line],
    slots: int,
    route: Route,
    process: Any,
    choose: Choose,
    ends: Ends,
) -> torch.Tensor:
    """One pass a token. ``lines`` are those in the batch, in the order of its rows."""
    first = True
    with contextlib.ExitStack() as routing:  # the same one as long as nobody leaves
        routing.enter_context(route(_counts(lines, slots)))
        while True:
            new = None if first or not inputs.get("use_cache", True) else 1
            made = model.prepare_inputs_for_generation(
                ids, next_sequence_length=new, is_first_iteration=first, **inputs
            )
            outputs = model(**made, return_dict=True)
            first = False
            inputs = model._update_model_kwargs_for_generation(outputs, inputs)
            chosen = choose(process(ids, outputs.logits[:, -1].float()), lines)
            del outputs
            ids = torch.cat([ids, chosen[:, None]], dim=1)
            for line, token in zip(lines, chosen.tolist(), strict=True):
                if not line.ended:
                    ends.take(line, token)
            kept = [place for place, line in enumerate(lines) if not line.ended]
            if not (base.ranks.any(bool(kept)) if base.sharded else kept):
                return ids
            kept = kept or [0]  # the other processes of a sharded model have passes to do, of which this does its part
            if len(kept) < len(lines) and _selectable(inputs):
                routing.close()
                places = torch.tensor(kept, device=ids.device)
                inputs = _of_rows(inputs, len(lines), places)
                ids, lines = ids.index_select(0, places), [lines[place] for place in kept]
                routing.enter_context(route(_counts(lines, slots)))


def _counts(lines: Sequence[Line], slots: int) -> list[int]:
    """Rows of each slot."""
    counts = [0] * slots
    for line in lines:
        counts[line.slot] += 1
    return counts


def _selectable(inputs: dict[str, Any]) -> bool:
    """Whether rows can leave the batch: not where a model keeps a state of another kind than transformers' caches."""
    known = (bool, int, float, str, torch.Tensor, Cache)
    return all(value is None or isinstance(value, known) for value in inputs.values())


def _of_rows(inputs: dict[str, Any], rows: int, kept: Any) -> dict[str, Any]:
    """What ``generate`` keeps between passes, for some of the rows. Caches are changed in place."""
    fewer = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Cache):
            value.reorder_cache(kept)
        elif isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[-2] == rows:
            fewer[name] = value.index_select(-2, kept)  # positions may have a dimension before that of the rows
    return fewer


@contextlib.contextmanager
def _without_defaults(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Keep a model's ``generation_config.json`` from filling settings up: its repetition penalty is not greedy."""
    own, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = own
