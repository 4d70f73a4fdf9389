"""A pack: adapters of several trials trained together over one frozen base model.

One pass holds a micro-batch of each slot that is not resting, rows sorted by slot. The base model runs once over all
rows; each slot's adapter sees its own. The loss is the sum over slots of each slot's own token mean, so that no slot's
gradient knows another; clipping, optimiser, schedule and counters are per slot (``trainer/engines/slot.py``). Where
rows differ in length by so much that it pays, short ones get a pass of their own instead of padding: gradients add up
to the same.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from trainer.engine import Event, never
from trainer.engines.batches import cut_by_length
from trainer.engines.interruption import interruptible
from trainer.engines.keyed_dropout import row_keys, shared_key
from trainer.engines.lora_kernels import Routing, Segment
from trainer.engines.pack_layers import PackedHead, PackedLora, PerSlot
from trainer.engines.slot import Slot
from trainer.evaluation.evaluate import Evaluation, evaluate
from trainer.likelihood.log_likelihood import SlotModel, Together
from trainer.models.base_model import BaseModel
from trainer.models.base_state import BaseState
from trainer.models.lm_head import weighted_cross_entropy
from trainer.models.lora import linear_modules
from trainer.models.ranks import Interrupted
from trainer.outcomes import Diverged, ended_by, out_of_memory, raise_device_fault

# Most tokens of a pass, padding included. On a CPU two passes are faster than a larger one: its tensors do not fit the
# caches, and the allocator gets the memory of the largest from the system anew each time (BENCHMARKS.md).
_PASS = {"cpu": 1 << 12}
_NEAR = 2  # optimiser steps that a slot waits at a rung for others, to be scored in one pass with them


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

    def add(self, slot: Slot) -> None:
        """Add a slot. Raises MemoryError or RuntimeError where it does not fit; then the pack is as before."""
        if not self.slots:
            self._attach()
        self.slots.append(slot)
        try:
            self._restack()
        except (MemoryError, RuntimeError):
            self.remove(slot)
            raise

    def remove(self, slot: Slot) -> None:
        """Remove a slot. With the last one, the base model is as it was before the pack."""
        self.slots.remove(slot)
        if self.slots:
            self._restack()
        else:
            self._detach()

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
            name: PackedLora(name, modules[name], lambda: self._routing, self.rank_multiple, behaviour.layout(name))
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
        self._heads = {name: PackedHead(modules[name], lambda: self._routing) for name in self.base.heads}
        for name, head in self._heads.items():
            model.set_submodule(name, head)
        if self.checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def _detach(self) -> None:
        if self._before is not None:
            self._before.restore()
        self._before, self._layers, self._heads, self._per_slot = None, {}, {}, []

    def _restack(self) -> None:
        for name, layer in self._layers.items():
            layer.restack([slot.modules.get(name) for slot in self.slots], self.base.device)
        for name, head in self._heads.items():
            head.slots = [slot.heads[name] for slot in self.slots]
        for slot in self.slots:
            slot.lay_out_moments()

    # --- training

    def step(self) -> list[Event]:
        """Do one micro-step of every slot that trains; of slots whose micro-steps are all done, the optimiser step.

        Returns:
            The ends of slots that diverged, or ran out of memory alone. They stay in the pack until they are removed.
        """
        training = [slot for slot in self.slots if self.trains(slot)]
        events: list[Event] = []
        for group in self._passes(training):
            events += self._try_pass(group)
        lost = {event.trial_id for event in events}
        ready = [slot for slot in training if slot.ready and slot.trial.trial_id not in lost]
        updated = []
        for i, slot in enumerate(ready):
            try:
                updated.append((slot, slot.update()))
            except Exception as error:
                slot.spoiled = True
                events.append(ended_by(error, slot.trial.trial_id, slot.record.step))
                for other in ready[i + 1 :]:  # they repeat this step, with the memory that this slot leaves
                    other.forget_micro_steps()
                break
        if updated:
            checked = torch.stack([values for _, values in updated]).tolist()  # one wait for the device
            for (slot, _), (loss, norm) in zip(updated, checked, strict=True):
                try:
                    slot.count((loss, norm))
                except Diverged as error:
                    events.append(ended_by(error, slot.trial.trial_id, slot.record.step))
        return events

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
            n, w = slot.next_batch()["input_ids"].shape
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
            shapes = [slot.next_batch()["input_ids"].shape for slot in group]
            self.pass_tokens = max(1, sum(n for n, _ in shapes) * max(w for _, w in shapes) // 2)
        events: list[Event] = []
        for smaller in (group[: len(group) // 2], group[len(group) // 2 :]):
            events += self._try_pass(smaller)
        return events

    def run_pass(self, slots: list[Slot], batches: list[dict[str, Any]]) -> None:
        """Forward and backward over one micro-batch of each slot; gradients are added up in place.

        Rows that differ enough in length go in several passes (``cut_by_length``).

        Args:
            slots: of this pack.
            batches: one of each slot, from ``micro_batches``.
        """
        losses: dict[int, torch.Tensor] = {}
        for part in cut_by_length(batches, self.pass_cost):
            own = self._one_pass([slots[k] for k, _ in part], [batch for _, batch in part])
            for (k, _), loss in zip(part, own, strict=True):
                losses[k] = losses[k] + loss if k in losses else loss
        for k, slot in enumerate(slots):
            slot.note(losses[k])

    def _one_pass(self, slots: list[Slot], batches: list[dict[str, Any]]) -> list[torch.Tensor]:
        """Forward and backward over some rows of each slot. Returns each slot's loss over them, a scalar in nats."""
        places = {id(slot): k for k, slot in enumerate(self.slots)}
        counts = [len(batch["input_ids"]) for batch in batches]
        ends = torch.tensor(counts).cumsum(0).tolist()
        keys = shared = None
        if any(slot.trial.lora.dropout for slot in slots):
            of_slots = [row_keys(s.trial.seed, b["step"], b["samples"]) for s, b in zip(slots, batches, strict=True)]
            keys = torch.cat(of_slots).to(self.base.device)
            if self.base.behaviour.shared:
                of_slots = [shared_key(s.trial.seed, b["step"]) for s, b in zip(slots, batches, strict=True)]
                shared = torch.cat(of_slots).to(self.base.device)
        segments = tuple(
            Segment(places[id(slot)], end - n, end) for slot, n, end in zip(slots, counts, ends, strict=True)
        )
        ids = self._stack_rows(batches, "input_ids", self.base.pad_token).to(self.base.device)
        mask = self._stack_rows(batches, "attention_mask", 0).to(self.base.device)
        model: Any = self.base.model
        model.train()
        routing = Routing(segments, len(self.slots), keys, self.kernel, self.base.device, ids.shape[1], shared)
        with self._routed(routing):
            summed = (
                self._completion_losses(batches, ids, mask) if self._logits else self._class_losses(batches, ids, mask)
            )
            losses = [loss / batch["denominator"] for loss, batch in zip(summed, batches, strict=True)]
            torch.stack(losses).sum().backward()
        return [loss.detach() for loss in losses]

    def _stack_rows(self, batches: list[dict[str, Any]], name: str, fill: int) -> torch.Tensor:
        """All batches' rows, padded on the right to the longest, on the CPU."""
        width = max(batch[name].shape[1] for batch in batches)
        return torch.cat([torch.nn.functional.pad(b[name], (0, width - b[name].shape[1]), value=fill) for b in batches])

    def _completion_losses(
        self, batches: list[dict[str, Any]], ids: torch.Tensor, mask: torch.Tensor
    ) -> list[torch.Tensor]:
        assert self._logits is not None
        # (rows, tokens): the token that each position predicts
        targets = self._stack_rows(batches, "labels", -100).roll(-1, 1)
        targets[:, -1] = -100
        bears = targets != -100  # on the CPU, so that nothing waits for the device
        here = bears.sum(1).split([len(batch["labels"]) for batch in batches])
        with self.base.arithmetic():
            hidden = self._logits.hidden(ids, mask).flatten(0, 1)
        weights = [
            None if batch["weights"] is None else batch["weights"].repeat_interleave(own).to(self.base.device)
            for batch, own in zip(batches, here, strict=True)
        ]
        hidden = hidden.index_select(0, bears.flatten().nonzero()[:, 0].to(self.base.device))
        return self._logits.summed(
            hidden, targets[bears].to(self.base.device), [int(own.sum()) for own in here], weights
        )

    def _class_losses(self, batches: list[dict[str, Any]], ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        model: Any = self.base.model
        with self.base.arithmetic():
            logits = model(input_ids=ids, attention_mask=mask).logits
        targets = torch.cat([batch["labels"] for batch in batches]).to(self.base.device)
        sizes = [len(batch["labels"]) for batch in batches]
        weights = [None if b["weights"] is None else b["weights"].to(self.base.device) for b in batches]
        parts = zip(logits.split(sizes), targets.split(sizes), weights, strict=True)
        return [weighted_cross_entropy(part, target, weight) for part, target, weight in parts]

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
                    evaluation = self._evaluate(models, slot, slot.validation.rung, None)
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
                    evaluation = self._evaluate(models, slot, everything, slot.record.require_best().evaluation)
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
    def _route(self, places: Sequence[int], rows: int) -> Iterator[None]:
        segments = tuple(Segment(place, i * rows, (i + 1) * rows) for i, place in enumerate(places))
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
        self, models: dict[str, SlotModel], slot: Slot, indices: list[int], known: Evaluation | None
    ) -> Evaluation:
        return evaluate(self.base, models[slot.trial.trial_id], slot.trial, slot.validation, indices, known)
