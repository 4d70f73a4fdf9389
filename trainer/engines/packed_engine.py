"""The packed engine: the trials of a device share its base models and train side by side."""

import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch

from analysis.errors import ModelError
from analysis.folder import State, TrialFolder
from trainer.config import EngineConfig, TrialConfig, check_trial, pack_refusal
from trainer.device_cache import DeviceCache
from trainer.engine import Admission, Admitted, Ended, Event, Full, Refused, Requeued, never
from trainer.engines.batches import pass_cost
from trainer.engines.pack import Pack
from trainer.engines.slot import Slot
from trainer.engines.slot_budget import SlotBudget, fit, free_bytes, held_bytes, measure
from trainer.engines.trial_record import Score
from trainer.outcomes import out_of_memory


class PackedEngine:
    """An ``Engine`` (trainer/engine.py) with a pack for each base model (model, revision, precision, task head).

    Packs train in turns, a step each.

    Args:
        device_cache: base models and data of this device.
        score: the sweep's objective, higher is better; picks each trial's best rung.
        settings: how packs are trained.
        slots: most trials at a time over all packs; None: as many as memory holds and packing pays for.
    """

    def __init__(self, device_cache: DeviceCache, score: Score, settings: EngineConfig, slots: int | None = None):
        self.device_cache, self.score, self.settings, self.slots = device_cache, score, settings, slots
        self.patience = 0.0
        self.pass_cost: float | None = None
        self._room: int | None = None  # most slots at a time that memory holds; known once it has run out
        self._packs: list[Pack] = []
        self._admitted: list[Slot] = []  # of all packs, the oldest first
        self._budgets: dict[tuple[str, ...], SlotBudget] = {}

    def admit(self, trial: TrialConfig, folder: TrialFolder, checkpoint: Path | None) -> Admission:
        check_trial(trial)
        refusal = pack_refusal(trial.lora)
        if refusal:
            return Refused(refusal, "")
        alone = not any(pack.slots for pack in self._packs)
        most = [n for n in (self.slots, self._room) if n is not None]
        if not alone and most and self._n_slots() >= min(most):
            return Full()
        try:
            pack = self._pack(trial)
            budget = self._budget(pack, trial)
            if not alone and not self._holds(pack, budget, trial):
                return Full()
            slot = self._slot(trial, folder, pack, checkpoint)
            pack.add(slot)
            self._admitted.append(slot)
        except (MemoryError, RuntimeError) as error:
            if alone or not out_of_memory(error):
                raise
            self._collect()
            return Full()  # there is room when others have ended
        return Admitted(slot.record.step)

    def capacity(self, trial: TrialConfig) -> int:
        """Trials like this one that this device takes side by side."""
        measures = self.pass_cost is None and pass_cost(self.settings, self.device_cache.device) is None
        if self.slots is not None and not measures:
            return self.slots
        if pack_refusal(trial.lora):
            return self.slots or 1
        pack = self._pack(trial)
        slots = self._budget(pack, trial).slots(trial)
        return self.slots or slots

    def advance(self, until: Callable[[], bool] = never, leaving: Callable[[], bool] = never) -> list[Event]:
        while True:
            events: list[Event] = []
            for pack in list(self._packs):  # packs take turns, a step each
                events += self._advance(pack, leaving)
            if events or until() or not any(pack.busy for pack in self._packs):
                return events

    def _advance(self, pack: Pack, leaving: Callable[[], bool]) -> list[Event]:
        unplaced = pack.place()
        if unplaced:
            return self._settled(unplaced)
        done = [s for s in pack.slots if not s.resting and not s.due and s.record.done]
        events = pack.finish(done, leaving)
        began = time.monotonic()
        events += pack.step()
        self.patience = time.monotonic() - began
        ended = {event.trial_id for event in events}
        events += pack.rungs([slot for slot in pack.due() if slot.trial.trial_id not in ended], leaving)
        return self._settled(events)

    def _settled(self, events: list[Event]) -> list[Event]:
        """Free the slots of trials that ended. Where memory ran out beside others, the youngest makes room."""
        settled: list[Event] = []
        cramped: list[tuple[Slot, str]] = []
        beside = self._n_slots() > 1
        for event in events:
            if isinstance(event, Ended):
                slot = self._find(event.trial_id)[1]
                if event.state is State.OUT_OF_MEMORY and beside:
                    cramped.append((slot, event.reason))
                    continue
                self._free(slot, event.state)
            settled.append(event)
        for i, (slot, reason) in enumerate(cramped):
            if slot in self._admitted and (i == 0 or slot.spoiled):  # once one is out, others may fit
                settled.append(self._evict(slot, reason))
        return settled

    def _free(self, slot: Slot, state: State) -> None:
        try:
            if state is not State.COMPLETED:
                slot.write_best()
        finally:
            self._remove(slot.trial.trial_id)

    def _evict(self, slot: Slot, reason: str) -> Requeued:
        """Take the youngest slot out, with its optimiser's state; from now on there is one slot fewer.

        Args:
            slot: whose pass ran out of memory. It tries again, unless it is the youngest itself, or spoiled.
            reason: what the allocator said.
        """
        # slots at rest await the scheduler's decision
        others = [s for pack in self._packs for s in pack.slots if not s.resting]
        gone = slot if slot.spoiled else max(others, key=self._admitted.index)
        self._remove(gone.trial.trial_id)
        self._collect()
        self._room = max(1, self._n_slots())
        return Requeued(gone.trial.trial_id, reason)

    def proceed(self, trial_id: str) -> None:
        self._find(trial_id)[1].resting = False

    def steps(self, trial_id: str) -> int:
        return self._find(trial_id)[1].record.step

    def snapshot(self, trial_id: str, to: Path) -> Callable[[], None]:
        return self._find(trial_id)[1].snapshot(to)

    def release(self, trial_id: str) -> None:
        self._remove(trial_id)

    def end(self, trial_id: str, state: State) -> None:
        self._free(self._find(trial_id)[1], state)

    # --- packs

    def _n_slots(self) -> int:
        return sum(len(pack.slots) for pack in self._packs)

    def _pack(self, trial: TrialConfig) -> Pack:
        base = self.device_cache.base(trial)
        for pack in self._packs:
            if pack.base is base:
                return pack
        if base.behaviour.refusal:
            raise ModelError(base.behaviour.refusal)
        settings = self.settings
        pack = Pack(base, trial.task.name, settings.kernel, settings.activation_checkpointing)
        self._packs.append(pack)
        return pack

    def _slot(self, trial: TrialConfig, folder: TrialFolder, pack: Pack, checkpoint: Path | None) -> Slot:
        encoded, validation = self.device_cache.training(trial), self.device_cache.validation(trial)
        slot = Slot(trial, folder, pack.base, encoded, validation, self.score, checkpoint)
        mixed = sorted(slot.modules.keys() & pack.base.behaviour.mixed) if trial.lora.dropout else ()
        if mixed:
            raise ModelError(
                f"lora.dropout={trial.lora.dropout}: '{mixed[0]}' gets tokens of several rows mixed, so in a pack its"
                " masks would not be the trial's own. Use lora.dropout=0, other lora.targets, or engine=hf."
            )
        return slot

    def _budget(self, pack: Pack, trial: TrialConfig) -> SlotBudget:
        key = self.device_cache.base_key(trial)
        if key not in self._budgets:
            slot = self._slot(trial, TrialFolder(Path("probe")), pack, None)
            self._budgets[key] = measure(pack, slot, self.device_cache.gpu_share, held_bytes(self._trials()))
        cost = pass_cost(self.settings, pack.base.device)
        if cost is None:
            cost = self.pass_cost = self.pass_cost or self._budgets[key].pass_cost
        pack.pass_cost = cost  # the probe is not to be cut
        return self._budgets[key]

    def _holds(self, pack: Pack, budget: SlotBudget, trial: TrialConfig) -> bool:
        """Whether one more slot fits the device, beside those of all packs.

        Args:
            pack: to which the slot would be added.
            budget: of its base model.
            trial: of the slot.
        """
        if self.slots is None and self._n_slots() >= budget.slots(trial):
            return False
        with_it = [*self._trials(without=pack), (budget, [*(slot.trial for slot in pack.slots), trial])]
        room = free_bytes(self.device_cache.device, self.device_cache.gpu_share, held_bytes(self._trials()))
        return fit(with_it, room)

    def _trials(self, without: Pack | None = None) -> list[tuple[SlotBudget, list[TrialConfig]]]:
        """The trials of each pack, or of each but one, with the budget of its base model."""
        packs = [pack for pack in self._packs if pack.slots and pack is not without]
        by_pack = [[slot.trial for slot in pack.slots] for pack in packs]
        return [(self._budgets[self.device_cache.base_key(trials[0])], trials) for trials in by_pack]

    def _find(self, trial_id: str) -> tuple[Pack, Slot]:
        for pack in self._packs:
            for slot in pack.slots:
                if slot.trial.trial_id == trial_id:
                    return pack, slot
        raise ValueError(f"trial {trial_id} has no slot here")

    def _remove(self, trial_id: str) -> None:
        pack, slot = self._find(trial_id)
        pack.remove(slot)
        self._admitted.remove(slot)
        if not pack.slots:
            self._packs.remove(pack)
            self._collect()

    @staticmethod
    def _collect() -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
