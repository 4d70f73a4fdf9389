"""The record of a trial: its rungs, the best one, its counters, and how they are written; the same for all engines."""

import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from analysis.errors import FolderError, parsed_json
from analysis.folder import MetricsRow, State, TrialFolder, replace_tree
from analysis.item_sums import GENERATED
from trainer.config import TrialConfig
from trainer.engine import Ended, RungResult
from trainer.engines.checkpoints import ADAPTER_METADATA, BEST_FILE, COUNTERS, SCORED, remove, seal, write_tensors
from trainer.evaluation.evaluate import Evaluation, Validation, metrics_of
from trainer.outcomes import Diverged, MetricMissing

Score = Callable[[Mapping[str, float]], float]
Weights = dict[str, torch.Tensor]


@dataclass
class Best:
    """The best rung so far.

    Attributes:
        step: optimiser steps done.
        score: its objective, higher is better.
        weights: the adapter's, then, on the CPU.
        evaluation: its scores; None where their item tables are gone.
    """

    step: int
    score: float
    weights: Weights
    evaluation: Evaluation | None


@torch.no_grad()
def host_copies(tensors: Mapping[str, torch.Tensor], pinned: bool = True) -> Weights:
    """Copies in host memory, contiguous, which stay as they are while training goes on.

    Args:
        tensors: by name.
        pinned: copy a GPU's tensors into pinned memory, with one wait for all of them instead of one for each. Such
            memory cannot be swapped, and takes up to twice the bytes.
    """
    copies = {}
    for name, tensor in tensors.items():
        pin = pinned and tensor.is_cuda
        copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pin).copy_(tensor, non_blocking=pin)
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return copies


def peak_memory() -> int:
    """Most bytes that this process had at a time: of GPU memory; without a GPU, of resident memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere


class TrialRecord:
    """Keeps a trial's best rung and writes what its rungs yield.

    Args:
        trial: its config.
        folder: of the trial: for item tables and the adapter.
        validation: what the trial is scored on.
        score: the sweep's objective, higher is better.
        writes: whether this process writes items and adapter; of several that train a trial, one does.

    Attributes:
        step: optimiser steps done.
        tokens: training tokens seen, padding not counted.
        stale: rungs since the best one.
        scored: step of the last rung that was scored.
    """

    def __init__(
        self, trial: TrialConfig, folder: TrialFolder, validation: Validation, score: Score, writes: bool = True
    ):
        self.trial, self.folder, self.validation, self.score = trial, folder, validation, score
        self.writes = writes
        self.best: Best | None = None
        self.step = 0
        self.tokens = 0
        self.stale = 0
        self.scored = 0
        self._started = time.monotonic()

    def rung(self, evaluation: Evaluation, weights: Callable[[], Weights]) -> RungResult:
        """Record a rung.

        Args:
            evaluation: on the rung subset.
            weights: gives a copy of the adapter's weights; called where the rung is the best so far.

        Raises:
            Diverged: where a metric is not finite.
        """
        self._require_finite(evaluation, self.step)
        score = self.score(evaluation.metrics)
        if evaluation.missing and not math.isfinite(score):
            raise MetricMissing("; ".join(f"{name}: {why}" for name, why in evaluation.missing.items()))
        if self.best is None or score >= self.best.score:  # on a tie, the longer trained
            self.best, self.stale = Best(self.step, score, weights(), evaluation), 0
        else:
            self.stale += 1
        self._write_items(evaluation, self.step)
        self.scored = self.step
        return RungResult(self.trial.trial_id, self._row(evaluation, self.step, final=False))

    @property
    def due(self) -> bool:
        """Whether the trial is at a rung and not scored there yet."""
        return self.scored < self.step in self.trial.train.rungs

    @property
    def done(self) -> bool:
        """Whether nothing is left to train: all steps were made, or ``train.patience`` is used up."""
        train = self.trial.train
        return self.step >= train.max_steps or (train.patience is not None and self.stale >= train.patience)

    def require_best(self) -> Best:
        """The rung that the final scoring is about. Raises Diverged where there is none."""
        if self.best is None:
            raise Diverged("no rung had a finite objective")
        return self.best

    def completed(self, evaluation: Evaluation) -> Ended:
        """Record the final scoring of the best rung's adapter, on all validation items.

        Raises:
            Diverged: where a metric is not finite, or there is no best rung.
        """
        step = self.require_best().step
        self._require_finite(evaluation, step)
        self._write_items(evaluation, step)
        row = self._row(evaluation, step, final=True)
        short = self.step < self.trial.train.max_steps
        reason = f"train.patience: no better objective in the last {self.stale} rungs" if short else ""
        return Ended(self.trial.trial_id, State.COMPLETED, reason, self.step, row)

    def write_adapter(self, write: Callable[[Path], object]) -> None:
        """Put the adapter into the trial's folder: ``write`` fills a new folder, which then is renamed into place."""
        if not self.writes:
            return
        final = self.folder.adapter_dir
        beside = final.with_name(f".adapter.{os.getpid()}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        write(beside)
        replace_tree(beside, final)

    def checkpoint(self, to: Path, write: Callable[[], Mapping[str, str]]) -> Callable[[], None]:
        """A call that writes a checkpoint with the best rung and the counters as they are now, and completes it.

        Args:
            to: the checkpoint's folder, made anew.
            write: writes all other files into it, and returns the digests that it took meanwhile, by file name.

        Returns:
            The call; any thread may make it, once. Raises OSError.
        """
        best = self.best  # never changed, but replaced
        counters: dict[str, Any] = {"step": self.step, "tokens": self.tokens, "stale": self.stale}
        counters |= {SCORED: self.scored, "seconds": self._seconds}
        if best is not None:
            counters |= {"best_step": best.step, "best_score": best.score}

        def complete() -> None:
            remove(to)
            to.mkdir(parents=True)
            digests = dict(write())
            if best is not None:
                digests[BEST_FILE] = write_tensors(to / BEST_FILE, best.weights, ADAPTER_METADATA)
            seal(to, counters, digests)

        return complete

    def load(self, checkpoint: Path) -> None:
        """Read the best rung and the counters of a checkpoint."""
        counters: dict[str, Any] = parsed_json((checkpoint / COUNTERS).read_text())
        self.step = int(counters["step"])
        self.tokens = int(counters["tokens"])
        self.stale = int(counters.get("stale", 0))  # older checkpoints do not count
        self.scored = int(counters.get(SCORED, self.step))  # and were written at rungs alone
        self._started = time.monotonic() - float(counters["seconds"])
        if "best_step" in counters:
            weights = load_file(checkpoint / BEST_FILE)
            step = int(counters["best_step"])
            self.best = Best(step, float(counters["best_score"]), weights, self._read_evaluation(step))

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _row(self, evaluation: Evaluation, step: int, final: bool) -> MetricsRow:
        return MetricsRow(
            self.trial.trial_id, step, self.tokens, self._seconds, final, evaluation.n_items, evaluation.metrics,
            memory=peak_memory(), missing=evaluation.missing, answer_seconds=evaluation.answer_seconds,
        )  # fmt: skip

    def _write_items(self, evaluation: Evaluation, step: int) -> None:
        for dataset, columns in evaluation.tables.items() if self.writes else ():
            self.folder.write_items(dataset, "validation", step, columns)

    def _read_evaluation(self, step: int) -> Evaluation | None:
        """A rung's evaluation from its item tables; None where they are not there (they are scored again then)."""
        names = ["task", *self.validation.bias.tables()]
        names += [GENERATED] if self.validation.to_answer.at("rung") else []
        try:
            tables = {name: self.folder.read_items(name, "validation", step) for name in names}
        except FolderError:
            return None
        return Evaluation(
            metrics_of(tables, self.validation.labels, self.validation.settings), tables, len(tables["task"]["item_id"])
        )

    def _require_finite(self, evaluation: Evaluation, step: int) -> None:
        # a standard error is not finite where there is one item
        figures = {name: x for name, x in evaluation.metrics.items() if not name.endswith("stderr")}
        bad = sorted(name for name, value in figures.items() if not math.isfinite(value))
        if bad:
            raise Diverged(f"{', '.join(bad)} not finite after step {step}")
