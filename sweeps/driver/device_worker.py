"""The device worker: a Ray actor that owns one device and the engine (``trainer/engine.py``) on it.

One thread owns the engine. The actor's methods only queue commands for it and wait for what comes back, so that many
trial proxies can wait at the same time.

A worker whose GPU answers it no more gives its trials back too, and ends its process: a new one's calls are answered.

Of a trial at a rung the engine's thread takes a snapshot; another thread writes its checkpoint
(``sweeps/store/checkpoint_writer.py``) while the device's other trials train. The trial rests until its checkpoint is
sealed, and nobody hears of the rung before. Whatever frees or moves a slot waits for that (``_finish_saving``).

A worker whose machine is about to go leaves: it checkpoints each of its trials between two optimiser steps and gives
them back (``leave``). It does so by itself on SIGTERM; then its process ends. A raylet that gets SIGTERM as well ends
its workers within a tenth of a second: who stops a whole node drains it first (``ray drain-node``).
"""

import asyncio
import contextlib
import os
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.errors import DataError, HardwareError, LorasweepError, first_line
from analysis.folder import ENDED, MetricsRow, State, SweepFolder, TrialFolder, disk_fault
from analysis.objective import Objective
from sweeps.checks.simulate import Sizes
from sweeps.driver.device_facts import DataFacts, NodeFaults, StartCheck, WorkerFacts
from sweeps.driver.node_faults import no_gpu, node_faults
from sweeps.process import gc_pause
from sweeps.process.logs import of_worker
from sweeps.process.termination import on_sigterm
from sweeps.search.lineage import take_over
from sweeps.store.checkpoint_writer import CheckpointWriter, complete
from sweeps.store.node_copy import NodeCopy
from trainer import host_memory
from trainer.config import Baseline, EngineConfig, TrialConfig
from trainer.engine import (
    Admission,
    Admitted,
    DeviceFailed,
    DeviceFault,
    Ended,
    Engine,
    Event,
    Full,
    Halted,
    RankLost,
    Refused,
    Requeued,
    RungResult,
)
from trainer.engines.checkpoints import fault, scored_rung
from trainer.preload import import_libraries, import_scorers

if TYPE_CHECKING:
    from trainer.device_cache import DeviceCache

_DISK_SECONDS = 20.0  # for a node's look at the sweep folder and the config's files
_GRACE = 20.0  # seconds to leave in, on SIGTERM: SIGKILL mostly comes after 30, as by default in Kubernetes and SLURM
_HEARD = 5.0  # seconds more in which the proxies of trials that rest may ask, and hear where they stand
_PATIENCE = 1.0  # seconds at most that slots wait for the decisions on others
_NOT_SAVED = "its checkpoint could not be written"
_LAST_SECONDS = 1.0  # until a worker whose GPU failed ends, in which all hear why


class DeviceWorker:
    """Made an actor by ``sweeps/driver/cluster_nodes.py``, and spoken to through ``sweeps/driver/device_client.py``.

    Args:
        engine: which engine, and how it trains.
        slots: most trials at a time; None leaves it to the engine.
        objective: picks each trial's best rung.
        threads: CPU threads for arithmetic.
        node: name of the Ray node that it is on.
        gpus: that it claims: 1, a share of one, or 0 to train on the CPU.
    """

    def __init__(
        self, engine: EngineConfig, slots: int | None, objective: Objective, threads: int, node: str, gpus: float = 0.0
    ):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.threads = threads
        self.node = node
        self.gpus = gpus
        self._named = False  # whether errors say which node this is
        self.objective = objective
        self.settings, self.slots = engine, slots
        self._engine: Engine | None = None
        self._materials: DeviceCache | None = None
        self._events: dict[str, asyncio.Queue[Event | Halted | DeviceFailed]] = {}
        self._folders: dict[str, TrialFolder] = {}
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._background: deque[Callable[[], None]] = deque()  # work for when no trial is here
        self._alone = ""  # the trial that has the device to itself
        self._loop: asyncio.AbstractEventLoop | None = None
        self._saved: dict[str, int] = {}  # of each trial here: the step of its last checkpoint
        self._leaving = False
        self._last_words: asyncio.Future[None] | None = None
        self._failed_device = False
        self._given_back: list[str] = []
        self._abandoned: set[str] = set()  # given back while the engine was still busy with them
        self._undecided: set[str] = set()  # posted a rung, and not yet told to go on or to end
        self._resting: set[str] = set()  # the same, however long it takes
        self._told = 0.0  # when a rung was posted last, by this process's clock
        self._unsaved: dict[str, RungResult] = {}  # of trials at a rung that has no checkpoint yet, the oldest first
        self._writing: set[str] = set()  # those of them of which a snapshot was taken
        self._write_errors: dict[str, Exception] = {}  # of those, why they could not be written
        self._writer = CheckpointWriter(lambda: self._commands.put(self._save_rungs))
        self._copy = NodeCopy()  # of the sweep folder, where that is in a bucket
        self._log_file: Path | None = None  # of the sweep, here
        self._successors: dict[str, TrialConfig] = {}  # of trials that rest: how they go on from another one's weights
        threading.Thread(target=self._own_engine, name="engine", daemon=True).start()
        self._own_process = _in_actor()
        if self._own_process:
            on_sigterm(self._terminated)

    # --- called through Ray ------------------------------------------------------------------------------------------

    async def facts(self, check: StartCheck) -> WorkerFacts:
        """What it has.

        Raises:
            LorasweepError: where anything is wrong with its node: all of it, and the node's name.
        """
        facts, faults = await self.examine(check, log=True)
        refusal = faults.refusal()
        if refusal is not None:
            raise refusal
        assert facts is not None
        return facts

    async def examine(self, check: StartCheck, log: bool = False) -> tuple[WorkerFacts | None, NodeFaults]:
        """What it has, None where that cannot be told, and what is wrong with its node.

        Args:
            log: whether its libraries write to the sweep's log from now on; not where others share this process.
        """
        self._named = check.cluster
        try:  # in a thread of its own: a network file system that is gone does not answer
            faults = await asyncio.wait_for(asyncio.to_thread(node_faults, self.node, check), _DISK_SECONDS)
        except TimeoutError:
            faults = NodeFaults(
                folder=f"node {self.node}: reading {check.probe.folder} and the files of the config does not end"
                f" within {_DISK_SECONDS:g} s. Does a network file system hang there? Try `ls {check.probe.folder}`."
            )
        if not faults.folder:
            self._copy = check.probe.copy_here()
        if log and not faults.folder:
            self._log_file = SweepFolder(self._copy.folder(check.probe.folder).root).log_file
            if self._own_process:
                of_worker(self._log_file, self.node)
        try:
            return await self._on_engine_thread(partial(self._facts, check.precisions)), faults
        except HardwareError as error:
            return None, replace(faults, device=str(error))
        except Exception as error:  # a broken installation of torch or CUDA raises anything
            broken = f"node {self.node}: torch does not work there ({type(error).__name__}: {first_line(error)})."
            return None, replace(faults, device=f"{broken} `lorasweep doctor` on that node says more.")

    async def now(self) -> float:
        """This node's clock: seconds since 1970."""
        return time.time()

    async def sizes(self, trial: TrialConfig, timed: bool) -> Sizes:
        """How much there is to train on and, where ``timed``, what a trial costs here. Raises LorasweepError."""
        with self._naming_node():
            return await self._on_engine_thread(partial(self._sizes, trial, timed))

    async def prepare(self, trial: TrialConfig, pass_cost: float | None = None) -> DataFacts:
        """Load what a trial needs, so that bad input is found before the sweep starts. Raises LorasweepError.

        Args:
            pass_cost: what another worker measured, and this one is to use too (``engine.pass_cost``).
        """
        with self._naming_node():
            return await self._on_engine_thread(partial(self._agree_and_prepare, trial, pass_cost))

    @contextlib.contextmanager
    def _naming_node(self) -> Iterator[None]:
        """Errors about data and model say on which node they are, where there may be several."""
        try:
            yield
        except LorasweepError as error:
            if not self._named:
                raise
            raise type(error)(f"node {self.node}: {error}") from error
        except OSError as error:
            if not self._named or disk_fault(error):
                raise
            raise DataError(f"node {self.node}: {error.filename}: cannot be read ({error.strerror}).") from error

    async def score_baseline(self, baseline: Baseline, folder: str, test: bool = False) -> MetricsRow:
        """Score what trials are compared with, on everything a completed trial is scored on, once no trial is here.

        Args:
            test: on the test split instead of the validation split.
        """
        return await self._on_engine_thread(
            partial(self._save_baseline, baseline, self._copy.folder(folder), test), when_free=True
        )

    async def score_on_test(self, trial: TrialConfig, folder: str) -> MetricsRow:
        """Score a completed trial's adapter on the test split, once no trial is here."""
        return await self._on_engine_thread(
            partial(self._save_test_scores, trial, self._copy.folder(folder)), when_free=True
        )

    async def admit(
        self, trial: TrialConfig, folder: str, alone: bool = False, heard: int = 0
    ) -> Admission | Ended | Halted | DeviceFailed:
        """Start a trial, or go on from its last whole checkpoint. Otherwise it could not even be set up.

        Args:
            alone: give it the device to itself, because it may be what workers die of.
            heard: step of the last rung that it reported. It may not be recorded yet, and is not to be scored again.
        """
        if self._leaving:
            return Full()
        admission: Admission | Ended | Halted | DeviceFailed = await self._on_engine_thread(
            partial(self._admit, trial, self._copy.folder(folder), alone, heard)
        )
        return admission

    async def next_event(self, trial_id: str, proceed: bool = False) -> Event | Halted | DeviceFailed | None:
        """Wait for a trial's next event. None where it has no slot here.

        ``Requeued`` where the worker leaves, to a trial that rests too.

        Args:
            proceed: let it train on first, from the rung at which it rests.
        """
        if proceed and not self._leaving and not await self.proceed(trial_id):
            return None
        return await self._events[trial_id].get() if trial_id in self._events else None

    async def proceed(self, trial_id: str) -> bool:
        """Let a trial that rests train on. False where it has no slot here."""
        return bool(await self._on_engine_thread(partial(self._proceed, trial_id)))

    async def take_over(self, trial: TrialConfig, donor: str, step: int) -> str | None:
        """Let a trial go on from another one's weights and optimiser state, with the values that ``trial`` has.

        Args:
            donor: folder of the other trial, which may train elsewhere.
            step: of a rung that both have reached.

        Returns:
            None where the trial is not here, "" where it was done, else why it cannot be done.
        """
        return await self._on_engine_thread(partial(self._take_over, trial, self._copy.folder(donor), step))

    async def end(self, trial_id: str, state: str) -> None:
        """Free a trial's slot; nothing happens where it has none."""
        await self._on_engine_thread(partial(self._end, trial_id, State(state)))

    async def leave(self, seconds: float) -> list[str]:
        """Give back all trials, each with a checkpoint of the steps that it has done. From now on none is admitted.

        Each trial's proxy gets ``Requeued`` as its next event. A scoring is broken off: its rung is scored elsewhere.
        Nobody's adapter is written. Where a checkpoint cannot be written, the trial goes on from its last one.

        Args:
            seconds: to wait at most for the engine, which may be in a step, in a baseline's scores or on a slow disk.
                Trials that are still here after that are given back without a checkpoint of now.

        Returns:
            The trials' ids.
        """
        self._leaving = True
        given_back = asyncio.ensure_future(self._on_engine_thread(self._give_back))
        done, _ = await asyncio.wait([given_back], timeout=seconds)
        if done:
            given_back.result()
            return list(self._given_back)
        for trial_id in [it for it in list(self._folders) if it not in self._abandoned]:
            self._abandoned.add(trial_id)
            self._given_back.append(trial_id)
            self._events[trial_id].put_nowait(self._requeued(trial_id))
        return list(self._given_back)

    async def die(self) -> None:
        """End the process, whose engine hangs."""
        os._exit(1)

    async def stay(self) -> None:
        """Never answered: whoever waits hears when the process is gone. Raises HardwareError where its GPU failed."""
        self._loop = asyncio.get_running_loop()
        self._last_words = self._loop.create_future()
        await self._last_words

    async def _on_engine_thread(self, work: Callable[[], Any], when_free: bool = False) -> Any:
        self._loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = self._loop.create_future()

        def run() -> None:
            try:
                result, error = work(), None
            except BaseException as raised:
                if self._ends_with_device(raised):
                    return  # whoever asked hears that the process is gone
                result, error = None, raised
            assert self._loop is not None
            self._loop.call_soon_threadsafe(_settle, answer, result, error)

        if when_free:
            self._background.append(run)
            self._commands.put(lambda: None)  # wakes the thread
        else:
            self._commands.put(run)
        return await answer

    def _terminated(self) -> None:
        """On SIGTERM, in a thread of its own; the process ends when this returns."""
        if self._loop is None:  # nothing was asked of it yet
            return
        asyncio.run_coroutine_threadsafe(self.leave(_GRACE), self._loop).result()
        until = time.monotonic() + _HEARD
        while time.monotonic() < until and any(not self._events[it].empty() for it in self._given_back):
            time.sleep(0.05)
        time.sleep(0.5)  # the answers are being sent

    # --- on the engine's thread

    def _own_engine(self) -> None:
        while True:
            events: Sequence[Event | Halted] = ()
            try:
                if self._folders:
                    events = self.engine.advance(self._called, lambda: self._leaving)
            except Exception as error:
                if not self._ends_with_device(error):
                    events = self._broken(error)
            for event in events:
                self._post(event)
            if not events:
                if self._background and not self._folders:
                    self._background.popleft()()
                else:
                    self._commands.get()()  # nothing trains: wait
            idle = self._folders.keys() <= self._resting | self._unsaved.keys()
            while not self._commands.empty():
                self._commands.get()()
            self._await_decisions(idle)

    def _await_decisions(self, idle: bool) -> None:
        """Slots that reached a rung together go on together: wait for what Tune says to them, though not for long.

        Args:
            idle: whether no slot trained meanwhile: then their checkpoints are worth the same wait.
        """
        began = time.monotonic()
        while self._undecided or (idle and self._unsaved):
            told = max(began, self._told) if self._undecided else began
            left = told + min(self.engine.patience, _PATIENCE) - time.monotonic()
            if left <= 0 and self._commands.empty():
                self._undecided.clear()
                return
            with contextlib.suppress(queue.Empty):
                self._commands.get(timeout=max(0.0, left))()

    def _broken(self, error: Exception) -> "list[Event | Halted]":
        """The engine itself failed: so have the trials in it, and the next ones find a new engine."""
        traceback.print_exc()
        for trial_id in list(self._unsaved):
            self._finish_saving(trial_id)
        self._engine = self._materials = None
        if disk_fault(error):
            return [self._halted(trial_id, error) for trial_id in self._folders]
        return [self._failed(trial_id, error, "the engine broke") for trial_id in self._folders]

    def _ends_with_device(self, error: BaseException) -> bool:
        """Whether an error says that the GPU answers this process no more. Then all trials hear so, and it ends."""
        fault = _device_fault(error)
        if fault is None:
            return False
        if self._failed_device:
            return True
        self._failed_device = self._leaving = True
        traceback.print_exception(error)
        alone = len(self._folders) == 1
        for trial_id in list(self._folders):
            self._post(DeviceFailed(trial_id, str(fault), alone))
        threading.Thread(target=self._end_process, args=(str(fault),), name="end", daemon=True).start()
        return True

    def _end_process(self, reason: str) -> None:
        time.sleep(_LAST_SECONDS / 2)  # the answers are being sent
        words = HardwareError(f"{self.node}: a device worker ended itself, because its GPU failed: {reason}")
        if self._last_words is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(_settle, self._last_words, None, words)
        time.sleep(_LAST_SECONDS / 2)
        os._exit(1)

    def _halted(self, trial_id: str, error: Exception) -> Halted:
        return Halted(trial_id, f"{self.node}: {str(error).strip() or type(error).__name__}")

    def _failed(self, trial_id: str, error: Exception, what: str) -> Ended:
        first = (str(error).strip().splitlines() or [""])[0][:500]
        rows = self._folders[trial_id].read_metrics()
        reason = f"{what}: {type(error).__name__}: {first}"
        return Ended(trial_id, State.FAILED, reason, rows[-1].step if rows else 0)

    def _called(self) -> bool:
        """Whether a call waits between two steps: to refill a slot, to decide on a rung."""
        return not self._commands.empty()

    @property
    def engine(self) -> Engine:
        """Made on first use: importing torch takes seconds, and the actor must answer before."""
        if self._engine is None:
            self._engine = self._make_engine()
        return self._engine

    @property
    def materials(self) -> "DeviceCache":
        """Base models and data on this device; made on first use, as the engine is."""
        if self._materials is None:
            import_torch()
            import torch

            torch.set_num_threads(self.threads)
            self._materials = self._make_materials()
        return self._materials

    def _make_materials(self) -> "DeviceCache":
        from trainer.device_cache import DeviceCache
        from trainer.models.base_model import best_device

        return DeviceCache(best_device(), self.gpus if self.gpus > 0 else 1.0)

    def _make_engine(self) -> Engine:
        materials = self.materials
        from trainer.engines.make import make_engine

        return make_engine(self.settings, materials, self.objective.score, self.slots)

    def _facts(self, precisions: Sequence[str]) -> WorkerFacts:
        import ray

        materials = self.materials  # imports torch
        import torch

        from trainer.models.base_model import arithmetic_speed, available_precisions, slow_precisions

        device = materials.device
        name = f"CPU, {self.threads} thread{'s' if self.threads > 1 else ''}"
        memory = host_memory.total()
        if device.type == "cuda":
            name = ", ".join([torch.cuda.get_device_name(device), *(f"GPU {i}" for i in ray.get_gpu_ids())])
            name += f", {self.gpus:.3g} of it" if 0 < self.gpus < 1 else ""
            memory = torch.cuda.mem_get_info(device)[1]
        elif self.gpus > 0:
            raise HardwareError(no_gpu(self.node, torch.__version__, built=torch.version.cuda or torch.version.hip))
        return WorkerFacts(
            self.node,
            name,
            available_precisions(device, precisions),
            slow_precisions(device, precisions),
            round(arithmetic_speed(device), 1),
            str(torch.__version__),
            memory,
        )

    def _sizes(self, trial: TrialConfig, timed: bool) -> Sizes:
        materials = self.materials  # imports torch
        from sweeps.checks.probe import sizes_on

        return sizes_on(materials, self.settings, trial, timed)

    def _agree_and_prepare(self, trial: TrialConfig, pass_cost: float | None) -> DataFacts:
        if pass_cost is not None:
            self.engine.pass_cost = pass_cost
        facts = self._prepare(trial)
        if facts.pass_cost is not None:  # for the engine that takes this one's place if it breaks
            self.settings = replace(self.settings, pass_cost=facts.pass_cost)
        return facts

    def _prepare(self, trial: TrialConfig) -> DataFacts:
        from trainer.evaluation.evaluate import absent_metrics, bias_notes
        from trainer.models.lora import linear_modules, resolve_targets

        base = self.materials.base(trial)
        resolve_targets(trial.lora.targets, linear_modules(base.model, base.heads))
        self.materials.training(trial)
        validation = self.materials.validation(trial)
        absent, notes = absent_metrics(trial, validation), bias_notes(trial, validation)
        slots = self.engine.capacity(trial)
        facts = self.materials.facts(trial)
        self._background.append(import_scorers)
        size, cost = base.model.num_parameters(), self.engine.pass_cost
        return DataFacts(parameters=size, slots=slots, absent=absent, bias_notes=notes, pass_cost=cost, **facts)

    def _save_baseline(self, baseline: Baseline, folder: TrialFolder, test: bool) -> MetricsRow:
        row = self._score_baseline(baseline, folder, test)
        self._copy.save_scores(folder)
        return row

    def _score_baseline(self, baseline: Baseline, folder: TrialFolder, test: bool) -> MetricsRow:
        from trainer.baselines import score_baseline

        return score_baseline(self.materials, baseline, folder, self.materials.test(baseline.trial) if test else None)

    def _save_test_scores(self, trial: TrialConfig, folder: TrialFolder) -> MetricsRow:
        self._copy.fetch(folder)
        self._copy.fetch_adapter(folder)
        row = self._score_on_test(trial, folder)
        self._copy.save_scores(folder)
        return row

    def _score_on_test(self, trial: TrialConfig, folder: TrialFolder) -> MetricsRow:
        from trainer.final_scoring import score_on_test

        return score_on_test(self.materials, trial, folder)

    def _admit(
        self, trial: TrialConfig, folder: TrialFolder, alone: bool = False, heard: int = 0
    ) -> Admission | Ended | Halted | DeviceFailed:
        if trial.trial_id in self._folders:  # the proxy died that had this slot: the trial goes on from its last rung
            self._end(trial.trial_id, State.STOPPED_EARLY)
        # A proxy that was killed while it gave a slot back: its trial has ended, and nobody will free the slot.
        for ended in [name for name in list(self._resting) if self._folders[name].read_status().state in ENDED]:
            self._end(ended, State.STOPPED_EARLY)
        if self._leaving or self._alone in self._folders or (alone and self._folders):
            return Full()
        try:
            self._copy.fetch(folder)
            steps, damaged = _usable(self._copy, folder, heard)
        except OSError as error:  # the bucket does not answer
            return self._halted(trial.trial_id, error)
        try:
            admission: Admission = self.engine.admit(trial, folder, folder.checkpoint_dir(steps[-1]) if steps else None)
        except LorasweepError as error:
            return Refused(str(error), "")
        except Exception as error:  # such as no memory left for another base model
            if disk_fault(error):
                return self._halted(trial.trial_id, error)
            without_others = not self._folders
            if self._ends_with_device(error):
                return DeviceFailed(trial.trial_id, str(_device_fault(error)), without_others)
            from trainer.outcomes import out_of_memory

            state = State.OUT_OF_MEMORY if out_of_memory(error) else State.FAILED
            reason = f"while it was set up: {str(error) or type(error).__name__}".splitlines()[0][:500]
            return Ended(trial.trial_id, state, reason, 0)
        if isinstance(admission, Admitted):
            self._events[trial.trial_id] = asyncio.Queue()
            self._folders[trial.trial_id] = folder
            self._saved[trial.trial_id] = steps[-1] if steps else 0
            self._alone = trial.trial_id if alone else ""
            if damaged:
                admission = replace(admission, note=f"{', '.join(damaged)}: went on from step {admission.step}")
        return admission

    def _proceed(self, trial_id: str) -> bool:
        self._finish_saving(trial_id)
        self._undecided.discard(trial_id)
        self._resting.discard(trial_id)
        if trial_id not in self._folders:
            return trial_id in self._events
        successor = self._successors.pop(trial_id, None)
        if successor is None:
            self.engine.proceed(trial_id)
        else:
            folder = self._folders[trial_id]
            self._succeed(successor, folder, folder.checkpoints()[-1])
        return True

    def _take_over(self, trial: TrialConfig, donor: TrialFolder, step: int) -> str | None:
        self._finish_saving(trial.trial_id)
        folder = self._folders.get(trial.trial_id)
        if folder is None:
            return None
        if folder.checkpoints()[-1:] != [step]:
            return "it has gone on to its next rung"
        try:
            self._copy.fetch_checkpoint(donor, step)
            if refused := take_over(folder, donor, step):
                return refused
            self._copy.save(folder)
        except OSError as error:
            return str(error)
        if trial.trial_id in self._resting:  # its slot is left when it is told to go on
            self._successors[trial.trial_id] = trial
        else:
            self._succeed(trial, folder, step)
        return ""

    def _succeed(self, trial: TrialConfig, folder: TrialFolder, step: int) -> None:
        """Leave the slot, and take one again from the checkpoint that was taken over."""
        try:
            self.engine.end(trial.trial_id, State.STOPPED_EARLY)
            admission = self.engine.admit(trial, folder, folder.checkpoint_dir(step))
            if not isinstance(admission, Admitted):
                raise LorasweepError(f"its slot was refused ({admission})")
        except Exception as error:
            if not self._ends_with_device(error):
                self._post(self._failed(trial.trial_id, error, "while it took over another trial's weights"))

    def _end(self, trial_id: str, state: State) -> None:
        self._finish_saving(trial_id)
        if trial_id in self._folders:
            folder = self._folders[trial_id]
            self._forget(trial_id)
            self.engine.end(trial_id, state)
            with contextlib.suppress(OSError):  # the adapter, which the driver has written too, from the checkpoint
                self._copy.save(folder)
                self._copy.leave(folder)

    def _forget(self, trial_id: str) -> None:
        """The trial is not here any more. Its checkpoints stay: it goes on from them, or the driver removes them."""
        del self._folders[trial_id], self._saved[trial_id]
        self._undecided.discard(trial_id)
        self._resting.discard(trial_id)
        self._successors.pop(trial_id, None)

    def _give_back(self) -> None:
        """Checkpoint, release and requeue every trial; those that rest first, which have their checkpoint already."""
        for trial_id in sorted(self._folders, key=lambda it: it not in self._resting):
            self._finish_saving(trial_id)
            if trial_id not in self._folders:  # that could not be written, and its proxy heard why
                continue
            try:
                step = self.engine.steps(trial_id)
                if step != self._saved[trial_id] and trial_id not in self._abandoned:
                    self._checkpoint(trial_id, step)
            except Exception:  # it goes on from the one before
                traceback.print_exc()
            with contextlib.suppress(Exception):
                self.engine.release(trial_id)
            if trial_id in self._abandoned:
                self._forget(trial_id)
            else:
                self._given_back.append(trial_id)
                self._post(self._requeued(trial_id))

    def _requeued(self, trial_id: str) -> Requeued:
        return Requeued(trial_id, f"its device worker on {self.node} left")

    def _post(self, event: Event | Halted | DeviceFailed) -> None:
        if event.trial_id in self._abandoned or event.trial_id not in self._folders:
            return  # its proxy was told to go elsewhere
        if isinstance(event, RungResult):  # told when its checkpoint is sealed
            self._unsaved[event.trial_id] = event
            self._save_rungs()
            return
        self._finish_saving(event.trial_id)
        if event.trial_id not in self._folders:  # it ended for want of its checkpoint
            return
        if isinstance(event, Ended):
            try:
                self._copy.save(self._folders[event.trial_id])
            except OSError as error:
                event = self._halted(event.trial_id, error)
        if isinstance(event, Requeued | Ended | Halted | DeviceFailed):
            folder = self._folders[event.trial_id]
            self._forget(event.trial_id)
            self._copy.leave(folder)
        self._tell(event)

    def _tell(self, event: Event | Halted | DeviceFailed) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._events[event.trial_id].put_nowait, event)

    # --- checkpoints, on the engine's thread but where it is said

    def _checkpoint(self, trial_id: str, step: int) -> None:
        """Write a checkpoint of now, and wait for it."""
        folder = self._folders[trial_id]
        complete(self._copy, folder, step, self.engine.snapshot(trial_id, folder.checkpoint_dir(step)))
        self._saved[trial_id] = step

    def _save_rungs(self) -> None:
        """Have checkpoints written of trials at a rung: as many as may be in memory, while the others rest."""
        for trial_id in list(self._write_errors):
            self._finish_saving(trial_id)
        for trial_id in [it for it in list(self._unsaved) if it not in self._writing]:
            if self._writer.full:
                return
            self._start_saving(trial_id)

    def _start_saving(self, trial_id: str) -> None:
        event, folder, copy = self._unsaved[trial_id], self._folders[trial_id], self._copy
        step = event.row.step
        try:
            write = self.engine.snapshot(trial_id, folder.checkpoint_dir(step))
        except Exception as error:
            self._not_saved(event, error)
            return
        self._writing.add(trial_id)

        def unless_abandoned() -> None:
            if trial_id not in self._abandoned:  # it goes on elsewhere, from an earlier one
                complete(copy, folder, step, write)

        self._writer.put(trial_id, unless_abandoned, partial(self._rung_written, event))

    def _rung_written(self, event: RungResult, error: Exception | None) -> None:
        """In the writer's thread, so that a trial's proxy does not wait for the others' step."""
        trial_id = event.trial_id
        if error is not None:  # the engine's thread ends the trial
            self._write_errors[trial_id] = error
            return
        if trial_id not in self._abandoned:
            self._saved[trial_id] = event.row.step
            self._told = time.monotonic()
            self._undecided.add(trial_id)
            self._resting.add(trial_id)
            self._tell(event)
        del self._unsaved[trial_id]  # first: what is not being written is begun
        self._writing.discard(trial_id)

    def _finish_saving(self, trial_id: str) -> None:
        """Wait until the checkpoint of a trial's rung is written, and its proxy told; nothing happens without one."""
        if trial_id in self._unsaved and trial_id not in self._writing:
            if self._failed_device:  # there is nothing to copy from
                del self._unsaved[trial_id]
            else:
                self._start_saving(trial_id)
        self._writer.wait(trial_id)
        error = self._write_errors.pop(trial_id, None)
        if error is not None:
            self._not_saved(self._unsaved[trial_id], error)

    def _not_saved(self, rung: RungResult, error: Exception) -> None:
        """A rung's checkpoint cannot be written: its trial's end, not its neighbours'; no trial's on a full disk."""
        trial_id = rung.trial_id
        del self._unsaved[trial_id]
        self._writing.discard(trial_id)
        if trial_id in self._abandoned:  # it is another worker's by now
            return
        if isinstance(error, RankLost):  # its rung is scored again
            self._post(Requeued(trial_id, str(error)))
            return
        if self._ends_with_device(error):  # which has told this trial too
            return
        traceback.print_exception(error)
        event = self._halted(trial_id, error) if disk_fault(error) else self._failed(trial_id, error, _NOT_SAVED)
        with contextlib.suppress(Exception):
            self.engine.end(trial_id, State.FAILED)
        self._post(event)


def _usable(copy: NodeCopy, folder: TrialFolder, heard: int) -> tuple[list[int], list[str]]:
    """Steps of the checkpoints to go on from, the last of which is whole, and what is wrong with later ones."""
    # A rung whose row the driver did not get to record must be reported again: go on from a step before it.
    recorded = {0, heard, *(row.step for row in folder.read_metrics())}
    steps = [step for step in folder.checkpoints() if scored_rung(folder.checkpoint_dir(step)) in recorded]
    damaged = []
    while steps:
        copy.fetch_checkpoint(folder, steps[-1])
        if not (what := fault(folder.checkpoint_dir(steps[-1]))):
            break
        damaged.append(f"the checkpoint of step {steps.pop()} is damaged ({what})")
    return steps, damaged


def _device_fault(error: BaseException) -> DeviceFault | None:
    if isinstance(error, DeviceFault) or "torch" not in sys.modules:
        return error if isinstance(error, DeviceFault) else None
    from trainer.outcomes import device_fault

    return device_fault(error)


def _in_actor() -> bool:
    """Whether this process is an actor's, not a test's or the driver's."""
    import ray

    return ray.is_initialized() and bool(ray.get_runtime_context().get_actor_id())


@cache
def import_torch() -> None:
    """Once, and not when an engine that broke is made anew: its remains must not be kept."""
    with gc_pause.paused():
        import_libraries()
        import trainer.device_cache
        import trainer.engines.make
        import trainer.engines.packed_engine
        import trainer.models.base_model  # noqa: F401


def _settle(answer: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if answer.cancelled():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
