"""A pack: adapters of several trials trained together over one frozen base model.

One pass holds a micro-batch of each slot that is not resting, rows sorted by slot. The base model runs once over all
rows; each slot's adapter sees its own. The loss is the sum over slots of each slot's own token mean, so that no slot's
gradient knows another; clipping, optimiser, schedule and counters are per slot (``trainer/engines/slot.py``). Where
rows differ in length by so much that it pays, short ones get a pass of their own instead of padding: gradients add up
to the same.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainer.engine import Event, never
from trainer.engines.batches import MicroBatch, cut_by_length
from trainer.engines.interruption import interruptible
from trainer.engines.lora_kernels import Routing, Segment
from trainer.engines.pack_layers import PackedHead, PackedLora, PerSlot
from trainer.engines.pass_inputs import PassInputs, pass_inputs
from trainer.engines.slot import Slot
from trainer.engines.tensors.flat_adamw import clip_factors, gradient_norms
from trainer.engines.tensors.flat_adamw import step as adamw_step
from trainer.engines.tensors.stacks import Stacks
from trainer.engines.tensors.transfer import Reading, to_device
from trainer.evaluation.evaluate import Evaluation, evaluate
from trainer.likelihood.log_likelihood import SlotModel, Together
from trainer.models.base_model import BaseModel
from trainer.models.base_state import BaseState
from trainer.models.lora import linear_modules
from trainer.models.masks import padding_is_known
from trainer.models.ranks import Interrupted
from trainer.outcomes import Diverged, ended_by, out_of_memory, raise_device_fault

# Most tokens of a pass, padding included. On a CPU two passes are faster than a larger one: its tensors do not fit the
# caches, and the allocator gets the memory of the largest from the system anew each time (BENCHMARKS.md).
_PASS = {"cpu": 1 << 12}
_NEAR = 2  # optimiser steps that a slot waits at a rung for others, to be scored in one pass with them


@dataclass(frozen=True)
class _Noted:
    """What a number is: of which trial, after how many optimiser steps."""

    trial_id: str
    step: int
    what: str


class _Unread:
    """A step's numbers, on their way from the device.

    Args:
        noted: what the numbers of each tensor are, and the tensor.
    """

    def __init__(self, noted: list[tuple[list[_Noted], torch.Tensor]]):
        self._noted = [each for of, _ in noted for each in of]
        self._reading = Reading([values for _, values in noted])

    def numbers(self) -> Iterable[tuple[_Noted, float]]:
        return zip(self._noted, self._reading.numbers(), strict=True)


class Pack:
    """All slots on one base model.

    Args:
        base: model, precision and task head that the trials share.
        task: ``completion`` or ``classification``.
        kernel: of the LoRA products: auto, loop, bmm or grouped.
        activation_checkpointing: recompute activations in the backward pass.

    Attributes:
        slots: the oldest first.
        pass_tokens: most tokens of one pass, padding included; None: no limit. Lowered when memory runs out.
        pass_cost: of ``cut_by_length``; infinite at first, so that nothing is cut.
    """

    def __init__(self, base: BaseModel, task: str, kernel: str = "auto", activation_checkpointing: bool = False):
        self.base, self.kernel = base, kernel
        self.slots: list[Slot] = []
        self.pass_tokens = _PASS.get(base.device.type)
        self.pass_cost = math.inf
        self.checkpointed = activation_checkpointing
        self._routing: Routing | None = None
        self._logits = base.output if task == "completion" else None
        self._before: BaseState | None = None  # of the base model, without the pack
        self._layers: dict[str, PackedLora] = {}
        self._heads: dict[str, PackedHead] = {}
        self._per_slot: list[PerSlot] = []
        self._stacks: Stacks | None = None
        self._placed: list[Slot] | None = None  # the slots that layers and stacks know; None: to be told anew
        self._late = base.device.type != "cpu"  # whether a step's numbers are looked at during the next
        self._noted: list[tuple[list[_Noted], torch.Tensor]] = []
        self._unread: _Unread | None = None

    def add(self, slot: Slot) -> None:
        """Add a slot. It gets its place beside the others in the next pass, so that many can be added at once."""
        if not self.slots:
            self._attach()
        self.slots.append(slot)

    def remove(self, slot: Slot) -> None:
        """Remove a slot. With the last one, the base model is as it was before the pack."""
        self.slots.remove(slot)
        self._let_go()
        if not self.slots:
            self._detach()
        self._noted = []

    @property
    def rank_multiple(self) -> int:
        """What stacks of adapters round their rank up to; 0 where only the loop kernel runs, which needs no stack."""
        return {"loop": 0, "bmm": 1, "grouped": 8, "auto": 8 if self.base.device.type == "cuda" else 0}[self.kernel]

    def _attach(self) -> None:
        model: Any = self.base.model
        self._before = BaseState(model)
        modules = dict(model.named_modules())
        behaviour = self.base.behaviour
        self._layers = {
            name: PackedLora(name, modules[name], lambda: self._routing, behaviour.layout(name))
            for name in linear_modules(model, self.base.heads)
        }
        self._per_slot = [
            PerSlot(
                modules[name],
                arguments,
                [self._layers[layer] for layer in behaviour.shared if layer.startswith(f"{name}.")],
                lambda: self._routing,
                self._routed,
            )
            for name, arguments in behaviour.by_slot.items()
        ]
        self._heads = {name: PackedHead(modules[name], name, lambda: self._routing) for name in self.base.heads}
        for name, head in self._heads.items():
            model.set_submodule(name, head)
        if self.checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def _detach(self) -> None:
        if self._before is not None:
            self._before.restore()
        self._before, self._layers, self._heads, self._per_slot = None, {}, {}, []
        self._stacks = None

    def _let_go(self) -> None:
        """Let no layer hold what a slot has: its memory is to be free, and the stacks may move."""
        for layer in self._layers.values():
            layer.let_go()
        for head in self._heads.values():
            head.let_go()
        self._placed = None

    def _restack(self) -> None:
        """Give slots that were added or removed since the last pass their places.

        Raises:
            MemoryError, RuntimeError: where the device has no room. A later call tries again.
        """
        if self._placed == self.slots:
            return
        self._let_go()
        scale = torch.empty(0)
        if self.rank_multiple:
            self._stacks = self._stacks or Stacks(self.rank_multiple, self.base.device)
            pieces = self._stacks.lay_out([list(slot.tensors.values()) for slot in self.slots])
            for slot, own in zip(self.slots, pieces, strict=True):
                slot.pieces = own
            scales = np.array([slot.scale for slot in self.slots], dtype=np.float32)
            scale = to_device({"scale": scales}, self.base.device)["scale"]
        for name, layer in self._layers.items():
            layer.lay_out([slot.modules.get(name) for slot in self.slots], self._stacks, scale)
        for name, head in self._heads.items():
            head.lay_out([slot.heads[name] for slot in self.slots], self._stacks)
        self._placed = list(self.slots)

    # --- training

    def place(self) -> list[Event]:
        """Give slots that were added their places.

        Returns:
            Where there is no memory for all, the end of the youngest, which stays until it is removed.
        """
        try:
            self._restack()
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            youngest = self.slots[-1]
            return [ended_by(error, youngest.trial.trial_id, youngest.record.step)]
        return []

    def step(self) -> list[Event]:
        """Do one micro-step of every slot that trains; of slots whose micro-steps are all done, the optimiser step.

        On a GPU whether losses were finite is looked at a step later, when the next is under way: the device would
        stand still meanwhile. At a rung it is looked at once.

        Returns:
            The ends of slots that diverged, or ran out of memory alone. They stay in the pack until they are removed.
        """
        self._restack()
        training = [slot for slot in self.slots if self.trains(slot)]
        events: list[Event] = []
        for group in self._passes(training):
            events += self._try_pass(group)
        lost = {event.trial_id for event in events}
        events += self._update([slot for slot in training if slot.ready and slot.trial.trial_id not in lost])
        noted, self._noted = self._noted, []
        before, self._unread = self._unread, _Unread(noted) if noted else None
        lost = {event.trial_id for event in events}
        going_on = [slot for slot in training if self.trains(slot) and slot.trial.trial_id not in lost]
        for slot in going_on:
            slot.next_batch()  # made while the device works
        events += self._diverged(before, events)
        if not self._late or len(going_on) < len(training):
            events += self._diverged(self._unread, events)
            self._unread = None
        return events

    def _update(self, ready: list[Slot]) -> list[Event]:
        """The optimiser step of slots; where that fails, of half of them, down to the one whose fault it is."""
        if not ready:
            return []
        try:
            steps = [slot.stepping() for slot in ready]
            norms = gradient_norms(steps)
            factors = clip_factors(steps, norms)
        except Exception as error:  # nothing is changed yet
            raise_device_fault(error)
            if len(ready) > 1:
                half = len(ready) // 2
                return [*self._update(ready[:half]), *self._update(ready[half:])]
            ready[0].forget_micro_steps()
            return [ended_by(error, ready[0].trial.trial_id, ready[0].record.step)]
        try:
            adamw_step(steps, factors)
        except Exception as error:
            for slot in ready:
                slot.spoiled = True
            return [ended_by(error, slot.trial.trial_id, slot.record.step) for slot in ready]
        self._note(ready, "gradient norm", norms)
        for slot in ready:
            slot.count()
        return []

    def _note(self, slots: Sequence[Slot], what: str, values: torch.Tensor) -> None:
        of = [_Noted(slot.trial.trial_id, slot.record.step, what) for slot in slots]
        self._noted.append((of, values))

    def _diverged(self, unread: "_Unread | None", events: Sequence[Event]) -> list[Event]:
        """The ends of slots with a number that is not finite, but for those that have ended already.

        Args:
            unread: of one step.
            events: of this one.
        """
        over = {event.trial_id for event in events} if unread else set()
        there = {slot.trial.trial_id for slot in self.slots}
        ends: list[Event] = []
        for noted, value in unread.numbers() if unread else ():
            if not math.isfinite(value) and noted.trial_id in there - over:
                over.add(noted.trial_id)
                error = Diverged(f"the {noted.what} was {value} in step {noted.step + 1}")
                ends.append(ended_by(error, noted.trial_id, noted.step))
        return ends

    @property
    def busy(self) -> bool:
        """Whether some slot trains, or waits at a rung to be scored."""
        return any(self.trains(slot) or slot.due for slot in self.slots)

    @staticmethod
    def trains(slot: Slot) -> bool:
        """Whether a slot takes part in the next micro-step."""
        return not slot.resting and not slot.due and not slot.record.done

    def _passes(self, slots: list[Slot]) -> Iterable[list[Slot]]:
        """Cut the slots into passes of at most ``pass_tokens``; a slot that is larger alone gets a pass of its own."""
        group: list[Slot] = []
        rows = width = 0
        for slot in slots:
            n, w = slot.next_batch().shape
            if group and self.pass_tokens and (rows + n) * max(width, w) > self.pass_tokens:
                yield group
                group, rows, width = [], 0, 0
            group, rows, width = [*group, slot], rows + n, max(width, w)
        if group:
            yield group

    def _try_pass(self, group: list[Slot]) -> list[Event]:
        """One pass; where it fails, the same slots in two passes, down to the one slot whose fault it is.

        Where memory ran out, later passes have at most half the tokens too.
        """
        try:
            self.run_pass(group, [slot.next_batch() for slot in group])
            return []
        except Exception as error:
            raise_device_fault(error)
            for slot in group:
                slot.forget_micro_steps()
            if len(group) == 1:
                return [ended_by(error, group[0].trial.trial_id, group[0].record.step)]
            no_memory = out_of_memory(error)
        if no_memory:
            if self.base.device.type == "cuda":
                torch.cuda.empty_cache()
            shapes = [slot.next_batch().shape for slot in group]
            self.pass_tokens = max(1, sum(n for n, _ in shapes) * max(w for _, w in shapes) // 2)
        events: list[Event] = []
        for smaller in (group[: len(group) // 2], group[len(group) // 2 :]):
            events += self._try_pass(smaller)
        return events

    def run_pass(self, slots: list[Slot], batches: list[MicroBatch]) -> None:
        """Forward and backward over one micro-batch of each slot; gradients are added up in place.

        Rows that differ enough in length go in several passes (``cut_by_length``).

        Args:
            slots: of this pack, in its order.
            batches: one of each slot, from ``micro_batches``.
        """
        self._restack()
        for part in cut_by_length(batches, self.pass_cost):
            own = [slots[k] for k, _ in part]
            self._note(own, "loss", self._one_pass(own, [batch for _, batch in part]))
        for slot in slots:
            slot.micro += 1

    def _one_pass(self, slots: list[Slot], batches: list[MicroBatch]) -> torch.Tensor:
        """Forward and backward over some rows of each slot. Returns (slots,) each one's loss over them, in nats."""
        places = {id(slot): k for k, slot in enumerate(self.slots)}
        behaviour, model = self.base.behaviour, self.base.model
        inputs = pass_inputs(
            slots,
            batches,
            [places[id(slot)] for slot in slots],
            len(self.slots),
            self.kernel,
            needs_mask=behaviour.needs_mask,
            shared_keys=bool(behaviour.shared),
        )
        if not model.training:
            model.train()
        with self._routed(inputs.routing), padding_is_known():
            each = self._completion_losses(inputs) if self._logits else self._class_losses(inputs)
            if inputs.weights is not None:
                each = each * inputs.weights
            losses = _summed(each, inputs.counts) / inputs.denominators
            losses.sum().backward()
        return losses.detach()

    def _completion_losses(self, inputs: PassInputs) -> torch.Tensor:
        """(positions,) of those that bear loss."""
        assert self._logits is not None
        assert inputs.bearing is not None
        with self.base.arithmetic():
            hidden = self._logits.hidden(inputs.ids, inputs.mask).flatten(0, 1)
        return self._logits.token_losses(hidden.index_select(0, inputs.bearing), inputs.targets)

    def _class_losses(self, inputs: PassInputs) -> torch.Tensor:
        """(rows,)"""
        model: Any = self.base.model
        with self.base.arithmetic():
            logits = model(input_ids=inputs.ids, attention_mask=inputs.mask).logits
        return torch.nn.functional.cross_entropy(logits.float(), inputs.targets, reduction="none")

    # --- scoring

    def rungs(self, slots: list[Slot], leaving: Callable[[], bool] = never) -> list[Event]:
        """Score slots on their rung subsets; slots with the same items in one pass. They rest afterwards.

        Args:
            slots: of this pack, which are due.
            leaving: whether to break off; slots that are not scored by then stay due.
        """
        models = self._models(slots)
        events: list[Event] = []
        for slot in slots:
            event: Event
            try:
                with interruptible(self.base.model, leaving):
                    evaluation = self._evaluate(models, slot, slot.validation.rung, None, "rung")
                event = slot.record.rung(evaluation, slot.weights)
                slot.rest()
            except Interrupted:
                break
            except Exception as error:
                event = ended_by(error, slot.trial.trial_id, slot.record.step)
            events.append(event)
        return events

    def due(self) -> list[Slot]:
        """Slots to be scored now: those at a rung, unless others with the same items will be at theirs soon."""
        due = [slot for slot in self.slots if slot.due]
        training = [slot for slot in self.slots if self.trains(slot)]
        ready = []
        for slot in due:
            near = [s for s in training if s.to_rung <= _NEAR and self._items_key(s) == self._items_key(slot)]
            if near and slot.waited < _NEAR:
                slot.waited += 1
            else:
                ready.append(slot)
        due_together = {self._items_key(slot) for slot in ready}
        return [slot for slot in due if self._items_key(slot) in due_together]

    def finish(self, slots: list[Slot], leaving: Callable[[], bool] = never) -> list[Event]:
        """Score slots' best rungs on all validation items and write their adapters.

        Args:
            slots: of this pack, whose trials are done.
            leaving: whether to break off; slots that are not scored by then stay as they are.
        """
        events: list[Event] = []
        scored = []
        for slot in slots:
            try:
                slot.restore(slot.record.require_best().weights)
                scored.append(slot)
            except Exception as error:
                events.append(ended_by(error, slot.trial.trial_id, slot.record.step))
        models = self._models(scored)
        for slot in scored:
            try:
                everything = list(range(len(slot.validation.rows)))
                with interruptible(self.base.model, leaving):
                    known = slot.record.require_best().evaluation
                    evaluation = self._evaluate(models, slot, everything, known, "final")
                ended = slot.record.completed(evaluation)
                slot.write_best()
                events.append(ended)
            except Interrupted:
                break
            except Exception as error:
                events.append(ended_by(error, slot.trial.trial_id, slot.record.step))
        return events

    def _models(self, slots: list[Slot]) -> dict[str, SlotModel]:
        """Trial id → the model to score it as. Slots with the same items share a ``Together``."""
        self._restack()
        places = {slot.trial.trial_id: self.slots.index(slot) for slot in slots}
        alike: dict[str, list[int]] = {}
        for slot in slots:
            alike.setdefault(self._items_key(slot), []).append(places[slot.trial.trial_id])
        together = {key: Together(group, self._route) for key, group in alike.items()}
        return {
            trial_id: SlotModel(self.base.model, place, next(t for t in together.values() if place in t.places))
            for trial_id, place in places.items()
        }

    @staticmethod
    def _items_key(slot: Slot) -> str:
        """A key of the items that a slot is scored on: equal for slots that can be scored in one pass."""
        trial = slot.trial
        return repr((trial.data, trial.task, trial.eval, trial.bias))

    @contextlib.contextmanager
    def _route(self, places: Sequence[int], rows: Sequence[int]) -> Iterator[None]:
        """A context for a forward pass in scoring, with so many rows of the slot at each place; of some maybe none."""
        ends = itertools.accumulate(rows)
        parts = zip(places, rows, ends, strict=True)
        segments = tuple(Segment(place, end - n, end) for place, n, end in parts if n)
        with self._routed(Routing(segments, len(self.slots), None, self.kernel, self.base.device)):
            yield

    @contextlib.contextmanager
    def _routed(self, routing: Routing) -> Iterator[None]:
        """A context in which the base model's rows go through the slots' adapters as a routing says."""
        before, self._routing = self._routing, routing
        try:
            yield
        finally:
            self._routing = before

    def _evaluate(
        self, models: dict[str, SlotModel], slot: Slot, indices: list[int], known: Evaluation | None, moment: str
    ) -> Evaluation:
        return evaluate(self.base, models[slot.trial.trial_id], slot.trial, slot.validation, indices, known, moment)


def _summed(each: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """(slots,) the sums of so many values of each slot."""
    if len(set(counts)) == 1 and counts[0]:
        return each.view(len(counts), -1).sum(1)
    return torch.stack([own.sum() for own in each.split(counts)])
