"""A device worker whose trials train over several GPUs of its node, or several processes on its CPUs.

Ray Train's TorchTrainer starts one process for each, once for the worker's life: libraries, model and data are loaded
once, not once a trial. What TorchTrainer is given to run is a loop that asks the worker for calls. Every process
(*rank*) makes every call, with an engine of its own; ``trainer/models/ranks.py`` says how they share a trial.

Where a rank dies or hangs, or fails where the others do not, all are ended, and a new group is started at the next
call: the trial goes on from its last checkpoint.
"""

import asyncio
import contextlib
import os
import queue
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from analysis.errors import ConfigError, LorasweepError, first_line
from analysis.folder import MetricsRow, State, TrialFolder, disk_fault
from analysis.objective import Objective
from sweeps.checks.simulate import Sizes
from sweeps.driver.device_facts import DataFacts, WorkerFacts
from sweeps.driver.device_worker import DeviceWorker
from sweeps.process.logs import of_worker
from sweeps.process.threads import thread_counts
from sweeps.process.visible_gpus import hide_gpus, visible_gpus
from trainer.config import Baseline, EngineConfig, TrialConfig
from trainer.engine import Admission, Admitted, Ended, Engine, Event, Halted, RankLost, Requeued, never, written

if TYPE_CHECKING:
    from trainer.device_cache import DeviceCache

_COLLECTIVE_SECONDS = 1800  # that ranks wait for each other: a large model is loaded by one after the other
_AGREE_SECONDS = 10.0  # in which ranks must fail together, or they are ended
_LIVES = 3  # groups that a trial may lose between two rungs
_LOOK_SECONDS = 0.2  # between two looks whether all ranks live
_ASK_SECONDS = 0.02  # between two looks whether somebody wants the engine
# Of Ray Train: nothing to look at, no files beside the sweep's, and no working directory of its own.
_RAY_TRAIN = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # TorchTrainer is waited for in a thread of its own
}


@dataclass(frozen=True)
class _Call:
    """What every rank is to do: a method of ``_Rank``, and its arguments."""

    number: int
    method: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class _Answer:
    """What a rank's call gave: a result or an error."""

    number: int
    rank: int
    result: Any = None
    error: Exception | None = None

    @property
    def failed(self) -> bool:
        events = self.result[0] if isinstance(self.result, tuple) else ()
        faults = (State.FAILED, State.OUT_OF_MEMORY)
        return self.error is not None or any(isinstance(it, Ended) and it.state in faults for it in events)


class RanksWorker(DeviceWorker):
    """A ``DeviceWorker`` that holds no device itself: its ranks do.

    Args:
        engine, slots, objective, threads, node, gpus: as for ``DeviceWorker``; the threads are each rank's.
        ranks: how many; where ``gpus`` is not 0, each has one GPU.
        cpus: that each rank claims.
    """

    def __init__(
        self,
        engine: EngineConfig,
        slots: int | None,
        objective: Objective,
        threads: int,
        node: str,
        gpus: float = 0.0,
        ranks: int = 2,
        cpus: float = 1.0,
    ):
        os.environ.update(_RAY_TRAIN)
        hide_gpus()  # here alone: a runtime environment would be the ranks' too
        self.ranks, self.cpus = ranks, cpus
        self._fit: _Fit | None = None
        self._number = 0
        self._call: _Call | None = None
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        self._wants: tuple[Callable[[], bool], Callable[[], bool]] = (never, never)
        super().__init__(engine, slots, objective, threads, node, gpus)

    # --- called by the ranks, through Ray

    async def joined(self, group: str, rank: int, process: int) -> None:
        """A rank is there."""
        if self._fit is not None and self._fit.group == group:
            self._fit.processes[rank] = process

    async def next_call(self, group: str, after: int) -> _Call | None:
        """Wait for the call after one; None where the group is to end."""
        while self._fit is not None and self._fit.group == group:
            if self._call is not None and self._call.number > after:
                return self._call
            await asyncio.sleep(_ASK_SECONDS / 4)
        return None

    async def answer(self, group: str, answer: _Answer) -> None:
        """What a rank's call gave."""
        if self._fit is not None and self._fit.group == group:
            self._answers.put(answer)

    async def wanted(self, group: str, number: int, known: tuple[bool, bool]) -> tuple[bool, bool] | None:
        """Wait until the engine is wanted for something else, or the worker leaves; None when the call is over.

        Args:
            number: of the call.
            known: what the rank was told before: whether it is wanted, whether the worker leaves.
        """
        while self._fit is not None and self._fit.group == group and self._call and self._call.number == number:
            now = self._wants[0](), self._wants[1]()
            if now != known:
                return now
            await asyncio.sleep(_ASK_SECONDS)
        return None

    # --- in place of the device worker's own

    def _facts(self, precisions: Sequence[str]) -> WorkerFacts:
        each: list[WorkerFacts] = self.on_ranks("facts", precisions, self._log_file)
        merged = {name: next((it.precisions[name] for it in each if it.precisions.get(name)), "") for it in each
                  for name in it.precisions}  # fmt: skip
        device = f"{len(each)} × {each[0].device}"
        if self.gpus:
            name = each[0].device.partition(", GPU ")[0]
            numbers = ", ".join(it.device.partition(", GPU ")[2] for it in each)
            device = f"{len(each)} × {name}, GPUs {numbers}"
        return replace(
            each[0],
            node=self.node,
            device=device,
            precisions=merged,
            speed=sum(it.speed for it in each),
            memory=min(it.memory for it in each),
        )

    def _sizes(self, trial: TrialConfig, timed: bool) -> Sizes:
        sizes: Sizes = self.on_ranks("sizes", trial, timed)[0]
        return sizes

    def _prepare(self, trial: TrialConfig) -> DataFacts:
        facts: DataFacts = self.on_ranks("prepare", trial)[0]
        return facts

    def _score_baseline(self, baseline: Baseline, folder: TrialFolder, test: bool) -> MetricsRow:
        row: MetricsRow = self.on_ranks("score_baseline", baseline, folder, test)[0]
        return row

    def _score_on_test(self, trial: TrialConfig, folder: TrialFolder) -> MetricsRow:
        row: MetricsRow = self.on_ranks("score_on_test", trial, folder)[0]
        return row

    def _make_engine(self) -> Engine:
        return _EngineOnRanks(self)

    def _broken(self, error: Exception) -> list[Event | Halted]:
        self._end_group()  # with the engines in it, which still hold the trial
        return super()._broken(error)

    # --- on the engine's thread

    def on_ranks(
        self, method: str, *arguments: Any, until: Callable[[], bool] = never, leaving: Callable[[], bool] = never
    ) -> list[Any]:
        """Have every rank make a call. Returns what each gave, by rank.

        Args:
            method: of ``_Rank``.
            arguments: of the method.
            until, leaving: as for ``Engine.advance``.

        Raises:
            RankLost: where a rank died or hung. The group is gone; the next call starts another.
            Exception: a rank's own.
        """
        if self._fit is None:
            self._start_group()
        fit = self._fit
        assert fit is not None
        self._number += 1
        self._wants = until, leaving
        self._call = _Call(self._number, method, arguments)
        try:
            answers = self._gather(fit)
        finally:
            self._call = None
        errors = [it.error for it in answers if it.error is not None]
        if len({it.failed for it in answers}) > 1 or len(answers) < self.ranks or any(_is_lost(it) for it in errors):
            self._end_group()
            failed = [it for it in answers if it.failed and not _is_lost(it.error)]
            if not failed:
                raise RankLost(str(next(iter(errors), "a process of the trial died")))
            if failed[0].error is not None:
                raise failed[0].error
            return [failed[0].result] * self.ranks
        if errors:
            raise errors[0]
        return [it.result for it in answers]

    def _gather(self, fit: "_Fit") -> list[_Answer]:
        """The answers to the last call, by rank; not all of them where some rank does not answer any more."""
        answers: dict[int, _Answer] = {}
        until = float("inf")
        while len(answers) < self.ranks and time.monotonic() < until:
            with contextlib.suppress(queue.Empty):
                answer = self._answers.get(timeout=_LOOK_SECONDS)
                if answer.number == self._number:
                    answers[answer.rank] = answer
                    if answer.failed:
                        until = min(until, time.monotonic() + _AGREE_SECONDS)
                continue
            if not fit.alive():
                until = min(until, time.monotonic() + _LOOK_SECONDS)  # for answers that are on their way
        return [answers[rank] for rank in sorted(answers)]

    def _start_group(self) -> None:
        """Start the ranks, and wait until all are there: as long as others hold what they claim.

        Raises:
            RankLost: where they could not be started.
        """
        import ray

        fit = self._fit = _Fit(uuid.uuid4().hex, self.ranks)
        fit.start(self, ray.get_runtime_context().current_actor, ray.get_runtime_context().get_node_id())
        while len(fit.processes) < self.ranks:
            if fit.ended.wait(_LOOK_SECONDS / 2):
                self._fit = None
                raise RankLost(f"the processes of its trials could not be started ({fit.why})")

    def _end_group(self) -> None:
        fit, self._fit = self._fit, None
        if fit is not None:
            fit.kill()


class _Fit:
    """One run of TorchTrainer: a group of ranks, from its start to its end.

    Args:
        group: its name.
        size: ranks.

    Attributes:
        processes: rank → process id, on this node.
        ended: set when TorchTrainer has returned.
        why: how it ended.
    """

    def __init__(self, group: str, size: int):
        self.group, self.size = group, size
        self.processes: dict[int, int] = {}
        self.ended = threading.Event()
        self.why = ""

    def start(self, worker: RanksWorker, actor: Any, node_id: str) -> None:
        threading.Thread(target=self._run, args=(worker, actor, node_id), name="ranks", daemon=True).start()

    def _run(self, worker: RanksWorker, actor: Any, node_id: str) -> None:
        scratch = tempfile.mkdtemp(prefix="lorasweep-ranks-")  # Ray Train insists on a folder
        try:
            from ray.train.torch import TorchConfig
            from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
            from ray.train.v2.torch.torch_trainer import TorchTrainer

            gpus = worker.gpus > 0
            per_rank = {"CPU": worker.cpus} | ({"GPU": 1.0} if gpus else {})
            settings = {
                "worker": actor,
                "group": self.group,
                "rank": {
                    "settings": worker.settings,
                    "objective": worker.objective,
                    "threads": worker.threads,
                    "node": worker.node,
                    "gpus": 1.0 if gpus else 0.0,
                },
            }
            TorchTrainer(
                _serve_calls,
                train_loop_config=settings,
                # a CPU's tensors go by gloo in any case: numbers and texts that ranks tell each other
                torch_config=TorchConfig(
                    backend="cpu:gloo,cuda:nccl" if gpus else "gloo", timeout_s=_COLLECTIVE_SECONDS
                ),
                scaling_config=ScalingConfig(
                    num_workers=self.size,
                    use_gpu=gpus,
                    resources_per_worker=per_rank,
                    placement_strategy="STRICT_PACK",
                    label_selector={"ray.io/node-id": node_id},
                ),
                run_config=RunConfig(
                    name=self.group,
                    storage_path=scratch,
                    failure_config=FailureConfig(max_failures=0),
                    worker_runtime_env={
                        "env_vars": {**_RAY_TRAIN, **thread_counts(worker.threads), **visible_gpus(worker.gpus)}
                    },
                    logging_config=LoggingConfig(log_level="ERROR"),
                ),
            ).fit()
        except BaseException as error:
            self.why = first_line(error)
        finally:
            self.ended.set()
            shutil.rmtree(scratch, ignore_errors=True)

    def alive(self) -> bool:
        """Whether all ranks live."""
        return not self.ended.is_set() and all(_lives(process) for process in self.processes.values())

    def kill(self) -> None:
        """End all ranks at once, and wait until Ray Train has seen it."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.ended.wait(60.0)


class _EngineOnRanks:
    """An ``Engine`` (trainer/engine.py) whose calls are made by the ranks of a worker. One slot."""

    def __init__(self, worker: RanksWorker):
        self.worker = worker
        self.patience = 0.0
        self.pass_cost: float | None = None
        self._proceeds = False
        self._trial: TrialConfig | None = None
        self._step = 0
        self._lost: Counter[str] = Counter()  # trial → groups that it lost since its last rung
        self._note = ""

    def capacity(self, trial: TrialConfig) -> int:
        return 1

    def admit(self, trial: TrialConfig, folder: TrialFolder, checkpoint: Path | None) -> Admission:
        arguments = "admit", trial, folder, checkpoint
        try:
            admission: Admission = self.worker.on_ranks(*arguments)[0]
        except RankLost:  # as where one died while nothing trained
            admission = self.worker.on_ranks(*arguments)[0]
        if isinstance(admission, Admitted):
            self._trial, self._proceeds, self._step = trial, False, admission.step
            if trial.trial_id in self._lost:
                said = f"a process of it died: went on from step {admission.step}"
                admission = replace(admission, note=said)
        return admission

    def advance(self, until: Callable[[], bool] = never, leaving: Callable[[], bool] = never) -> list[Event]:
        trial = self._trial
        if trial is None:
            return []
        proceeds, self._proceeds = self._proceeds, False
        try:
            events, self._step = self.worker.on_ranks(
                "advance", trial.trial_id, proceeds, until=until, leaving=leaving
            )[0]
        except RankLost as error:
            return [self._without_ranks(trial.trial_id, str(error))]
        for event in events:
            self._lost.pop(event.trial_id, None)
            if isinstance(event, Ended):
                self._trial = None
        return list(events)

    def _without_ranks(self, trial_id: str, why: str) -> Event:
        self._trial = None
        self._lost[trial_id] += 1
        if self._lost[trial_id] < _LIVES:
            return Requeued(trial_id, f"a process of the trial was lost ({why})")
        reason = f"a process of the trial was lost {self._lost.pop(trial_id)} times before the next rung: {why}"
        return Ended(trial_id, State.FAILED, reason, self._step)

    def proceed(self, trial_id: str) -> None:
        self._proceeds = True

    def steps(self, trial_id: str) -> int:
        return self._step

    def snapshot(self, trial_id: str, to: Path) -> Callable[[], None]:
        """Written at once by the first rank: no other slot waits for that."""
        try:
            self.worker.on_ranks("checkpoint", trial_id, to)
        except RankLost:
            self._trial = None
            self._lost[trial_id] += 1
            raise
        return written

    def release(self, trial_id: str) -> None:
        self._leave("release", trial_id)

    def end(self, trial_id: str, state: State) -> None:
        self._leave("end", trial_id, state)

    def _leave(self, method: str, *arguments: Any) -> None:
        if self._trial is None:  # its ranks died
            return
        self._trial = None
        self._lost.pop(arguments[0], None)
        with contextlib.suppress(RankLost):  # then there is no slot any more
            self.worker.on_ranks(method, *arguments)


# --- in a rank's process


class _RankDevice(DeviceWorker):
    """The device of a rank, with what a device worker does on one; never an actor of its own."""

    def _make_materials(self) -> "DeviceCache":
        import ray.train.torch

        from trainer.device_cache import DeviceCache
        from trainer.models.ranks import Ranks

        return DeviceCache(ray.train.torch.get_device(), ranks=Ranks.joined(), sharding=self.settings.sharding)


class _Rank:
    """What a rank makes of a call, all in one thread.

    Args:
        settings, objective, threads, node: as for ``DeviceWorker``.
        gpus: 1 or 0.
    """

    def __init__(self, settings: EngineConfig, objective: Objective, threads: int, node: str, gpus: float):
        self.device = _RankDevice(settings, None, objective, threads, node, gpus)
        self.place = self.device.materials.ranks
        self.flags = [False, False]  # whether the engine is wanted, whether the worker leaves

    def facts(self, precisions: Sequence[str], log_file: Path | None) -> WorkerFacts:
        if log_file is not None:
            of_worker(log_file, self.device.node)
        return self.device._facts(precisions)

    def sizes(self, trial: TrialConfig, timed: bool) -> Sizes | None:
        """By the first rank alone: how much is measured depends on the clock."""
        materials = self.device.materials
        if materials.base(trial).sharded and timed:
            raise ConfigError(
                "search.time needs to measure what a trial costs, which does not work with a model that is sharded over"
                " several devices. Name the length: train.max_steps=… and search.trials=…, with search.time=null."
            )
        if not self.place.first:
            return None
        from sweeps.checks.probe import sizes_on

        return sizes_on(materials.of_one_process(), self.device.settings, trial, timed)

    def prepare(self, trial: TrialConfig) -> DataFacts:
        return self.device._prepare(trial)

    def score_baseline(self, baseline: Baseline, folder: TrialFolder, test: bool) -> MetricsRow:
        if self.place.first:
            return self.device._score_baseline(baseline, folder, test)
        with tempfile.TemporaryDirectory(prefix="lorasweep-rank-") as scratch:
            return self.device._score_baseline(baseline, TrialFolder(Path(scratch) / folder.trial_id), test)

    def score_on_test(self, trial: TrialConfig, folder: TrialFolder) -> MetricsRow:
        return self.device._score_on_test(trial, folder if self.place.first else _ReadOnly(folder.root))

    def admit(self, trial: TrialConfig, folder: TrialFolder, checkpoint: Path | None) -> Admission:
        return self.device.engine.admit(trial, folder, checkpoint)

    def advance(self, trial_id: str, proceeds: bool) -> tuple[list[Event], int]:
        """The engine's events, and the steps that the trial has done."""
        engine = self.device.engine
        if proceeds:
            engine.proceed(trial_id)
        events = engine.advance(lambda: self.flags[0], lambda: self.flags[1])
        over = [it for it in events if isinstance(it, Ended)]
        return events, over[0].step if over else engine.steps(trial_id)

    def checkpoint(self, trial_id: str, to: Path) -> None:
        self.device.engine.snapshot(trial_id, to)()

    def release(self, trial_id: str) -> None:
        self.device.engine.release(trial_id)

    def end(self, trial_id: str, state: State) -> None:
        self.device.engine.end(trial_id, state)


class _ReadOnly(TrialFolder):
    """A trial's folder for those ranks that do not write."""

    def write_items(self, dataset: str, split: str, step: int, columns: Any) -> Path:
        return self.items_file(dataset, split, step)

    def append_metrics(self, row: MetricsRow) -> None:
        pass


def _serve_calls(settings: dict[str, Any]) -> None:
    """What TorchTrainer runs in each rank: make the worker's calls until the group ends, or the worker is gone."""
    from ray.exceptions import RayActorError

    with contextlib.suppress(RayActorError):
        _make_calls(settings)


def _make_calls(settings: dict[str, Any]) -> None:
    import ray

    worker, group = settings["worker"], settings["group"]
    rank = _Rank(**settings["rank"])
    place = rank.place.rank
    ray.get(worker.joined.remote(group, place, os.getpid()))
    done = 0
    while (call := ray.get(worker.next_call.remote(group, done))) is not None:
        done = call.number
        rank.flags[:] = False, False
        if place == 0 and call.method == "advance":
            threading.Thread(target=_listen, args=(rank, worker, group, done), daemon=True).start()
        try:
            answer = _Answer(done, place, getattr(rank, call.method)(*call.arguments))
        except Exception as error:
            answer = _Answer(done, place, error=_plain(error))
        ray.get(worker.answer.remote(group, answer))


def _listen(rank: _Rank, worker: Any, group: str, number: int) -> None:
    """Hear while a call runs whether the engine is wanted for something else."""
    import ray

    known = (False, False)
    with contextlib.suppress(ray.exceptions.RayError):
        while (told := ray.get(worker.wanted.remote(group, number, known))) is not None:
            known = told
            rank.flags[:] = told


def _plain(error: Exception) -> Exception:
    """An error as one that any process can read, of the kind that matters to the worker."""
    from trainer.models.ranks import by_lost_rank
    from trainer.outcomes import device_fault, out_of_memory

    if isinstance(error, LorasweepError) or disk_fault(error):
        return error
    if (fault := device_fault(error)) is not None:  # the process is of no more use: all are ended, as where one died
        return RankLost(f"its GPU failed: {fault}")
    if by_lost_rank(error):
        return RankLost(first_line(error))
    said = f"{type(error).__name__}: {first_line(error)}"
    return MemoryError(first_line(error)) if out_of_memory(error) else RuntimeError(said)


def _is_lost(error: Exception | None) -> bool:
    return isinstance(error, RankLost)


def _lives(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
