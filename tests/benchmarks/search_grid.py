"""How good is a search's pick after few trials? On published figures of 18 models, and where known points are wrong.

    python -m tests.benchmarks.search_grid grid [--space wide] [--seeds 50] [--models llama] [--arms ours,cold]
    python -m tests.benchmarks.search_grid elsewhere      trials until the pick is within 1 % of the best
    python -m tests.benchmarks.search_grid transfer       from the smallest models of the grid to the others
    python -m tests.benchmarks.search_grid portfolio      what sweeps/space/portfolio.yaml is made of

The arms: ``ours`` is the composed config's sampler, start points and search as a sweep has them, without Ray;
``judged`` the same with a portfolio learnt from the other models; ``cold`` the same with search.start_from=[];
``optuna`` a study with ``TPESampler(seed=…)`` and nothing else set; ``random`` its RandomSampler. One trial at a time,
each to its end. The pick is the best by its noisy score; it is judged by its true one.
Assumptions: ``tests/benchmarks/lr_rank_grid.py``.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from analysis.effective_rate import effective_rate
from analysis.folder import SweepFolder
from sweeps.compose.compose import Composed, compose
from sweeps.search.scheduler import build_sampler
from sweeps.search.searcher import GuardedOptunaSearch, SearchPlan
from sweeps.search.transfer import FIRST
from sweeps.space.dimensions import DefineByRun, Space, suggest
from sweeps.space.known_points import RatePoint, placed
from sweeps.space.width_rule import rate_factor
from tests.benchmarks.lr_rank_grid import NOISE, Model, models

WITHIN = 0.01
AT = (4, 8, 16, 32)
JITTER = (0.9, 1.0, 1.1)  # a chosen rate must be good a little beside itself too
LARGE = "model=llama3_8b"  # of a width that the portfolio is learnt from: its rates stay as they are
Landscape = Callable[[Mapping[str, Any]], float]  # values → loss, infinite where the trial diverges


def learnt(names: Sequence[str], ranks: Sequence[int] = (4, 16, 64), size: int = 4) -> list[RatePoint]:
    """Points chosen greedily: each next one lowers the loss of the pick among them the most.

    That loss is 0.2 times the share of picks that are more than 1 % off, and the pick's mean regret of 5 % at most;
    over models, noises, and rates a little beside the chosen ones.

    Args:
        names: of models.
        ranks: to choose from; the largest is that of the widest shipped space.
        size: of the portfolio.
    """
    candidates = [(10 ** (k / 12), rank) for k in range(-54, -27) for rank in ranks]
    chosen = [models()[name] for name in names]
    best = np.array([model.best((min(ranks), max(ranks))) for model in chosen])[:, None, None]
    true = np.array([[[model.nll(rate * by, rank) for by in JITTER] for model in chosen] for rate, rank in candidates])
    noise = np.random.default_rng(0).normal(0, NOISE, (size, 200))
    seen, pick = (np.full((*true.shape[1:], 200), math.inf) for _ in range(2))
    points = []
    for k in range(size):
        noisy = true[..., None] + noise[k]  # (candidates, models, rates beside, noises)
        picks_then = np.where(noisy < seen, true[..., None], pick)
        regret = np.minimum(picks_then / best - 1, 0.05)
        loss = 0.2 * (regret > WITHIN).mean(axis=(1, 2, 3)) + regret.mean(axis=(1, 2, 3))
        c = int(np.argmin(loss.round(9)))
        seen, pick = np.minimum(seen, noisy[c]), picks_then[c]
        points.append(RatePoint(float(f"{candidates[c][0]:.3g}"), candidates[c][1]))
    return points


@cache
def composed_for(words: tuple[str, ...]) -> Composed:
    return compose(["search.trials=32", *words])


def on_grid(model: Model, composed: Composed) -> Landscape:
    """The loss of a trial on a model of the grid."""
    rate = rates_of(composed)
    return lambda values: model.nll(rate(values), values["lora.rank"])


def rates_of(composed: Composed) -> Callable[[Mapping[str, Any]], float]:
    """A trial's values → its learning rate at alpha 32."""
    known: dict[tuple[Any, ...], float] = {}

    def rate(values: Mapping[str, Any]) -> float:
        key = (values["lora.rank"], values["lora.alpha_rule"])
        if key not in known:
            lora = composed.template.lora({"lora.rank": key[0], "lora.alpha_rule": key[1]})
            known[key] = effective_rate(1.0, lora.alpha_rule, lora.alpha_value, lora.rank)
        return float(values["optim.lr"]) * known[key]

    return rate


def best_of(landscape: Landscape, space: Space) -> float:
    """The lowest loss in a space, from a fine lattice over rate, rank and alpha rule."""
    rate, ranks, rules = space["optim.lr"], space["lora.rank"], space["lora.alpha_rule"]
    rates = np.exp(np.linspace(math.log(rate.low), math.log(rate.high), 1500))
    return min(
        landscape({"optim.lr": float(lr), "lora.rank": rank, "lora.alpha_rule": rule})
        for lr in rates for rank in ranks.values for rule in rules.values
    )  # fmt: skip


def search_trials(
    arm: str,
    composed: Composed,
    landscape: Landscape,
    noise: float,
    seed: int,
    trials: int,
    start: Sequence[Any],
    prior: Sequence[Any] = (),
) -> list[tuple[float, float]]:
    """True and noisy loss of each trial, in order; infinite where it diverged."""
    noises = np.random.default_rng(seed).normal(0, noise, trials)
    if arm in ("optuna", "random"):
        sampler: Any = optuna.samplers.TPESampler(seed=seed) if arm == "optuna" else optuna.samplers.RandomSampler(seed)
        study = optuna.create_study(sampler=sampler)
        seen = []
        for k in range(trials):
            trial = study.ask()
            loss = landscape(suggest(composed.space, trial))
            seen.append((loss, loss + noises[k]))
            finite = math.isfinite(loss)
            state = optuna.trial.TrialState.COMPLETE if finite else optuna.trial.TrialState.FAIL
            study.tell(trial, loss + noises[k] if finite else None, state=state)
        return seen
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as root:
        search = GuardedOptunaSearch(
            DefineByRun(composed.space),
            build_sampler({**composed.config.sampler, "seed": None}, seed, len(start)),
            SweepFolder(Path(root)),
            SearchPlan(trials, seed, start, prior),
        )
        seen = []
        for k in range(trials):
            suggestion = search.suggest(str(k))
            if not isinstance(suggestion, dict):
                break
            loss = landscape(suggestion["values"])
            seen.append((loss, loss + noises[k]))
            finite = math.isfinite(loss)
            answer = {"step": 1, "objective": -seen[-1][1] if finite else math.nan, "reason": ""}
            search.on_trial_complete(str(k), answer | {"state": "completed" if finite else "diverged"})
        return seen


def picks(seen: Sequence[tuple[float, float]]) -> list[float]:
    """After each trial the true loss of the best one by its noisy loss."""
    return [min(seen[: k + 1], key=lambda it: it[1])[0] for k in range(len(seen))]


@dataclass(frozen=True)
class Job:
    arm: str
    words: tuple[str, ...]
    name: str
    seed: int
    trials: int
    start: tuple[Any, ...] = ()


def _grid_job(job: Job) -> list[float]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    composed = composed_for(job.words)
    landscape = on_grid(models()[job.name], composed)
    return picks(search_trials(job.arm, composed, landscape, NOISE, job.seed, job.trials, job.start))


def start_of(arm: str, words: tuple[str, ...], name: str) -> tuple[Any, ...]:
    composed = composed_for(words)
    if arm == "ours":
        return tuple(composed.start)
    if arm == "judged":
        others = [other for other in models() if other != name]
        return tuple(placed(learnt(others), composed.space, composed.template.lora))
    return ()


@dataclass(frozen=True)
class Elsewhere:
    """A landscape whose best lies where the portfolio has no point.

    Attributes:
        rate: best effective learning rate; a trial diverges at five times as much.
        rank: the best one; each doubling away from it costs more than the one before.
    """

    name: str
    rate: float
    rank: int

    def loss(self, values: Mapping[str, Any], rate: float) -> float:
        """A parabola in log rate (at alpha 32) and log rank; other keys cost 0.2 to 1 %."""
        decades = math.log10(rate / self.rate)
        if decades > math.log10(5):
            return math.inf
        off = 0.08 * decades**2 + 0.004 * math.log2(values["lora.rank"] / self.rank) ** 2
        off += 0.01 * (values.get("lora.targets", "attention") != "attention")
        off += 0.004 * (values.get("train.batch_size", 8) != 8) + 0.002 * (values.get("optim.warmup", 0) != 0)
        off += 0.003 * (values.get("optim.weight_decay", 0.1) != 0.1) + 0.02 * values.get("lora.dropout", 0)
        return 0.5 * (1 + off)


ELSEWHERE = [Elsewhere("high rate, low rank", 6e-3, 4), Elsewhere("low rate, low rank", 1.5e-5, 4),
             Elsewhere("high rate, high rank", 6e-3, 64), Elsewhere("low rank", 3e-4, 2)]  # fmt: skip


def _elsewhere_job(job: Job) -> int:
    """Trials until the pick is within 1 % of the best."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    composed = composed_for(job.words)
    it = next(it for it in ELSEWHERE if it.name == job.name)
    rate = rates_of(composed)
    seen = search_trials(
        job.arm, composed, lambda values: it.loss(values, rate(values)), NOISE / 2, job.seed, job.trials, job.start
    )
    good = [k for k, loss in enumerate(picks(seen), start=1) if loss <= 0.5 * (1 + WITHIN)]
    return good[0] if good else job.trials


def elsewhere(given: argparse.Namespace) -> None:
    words = (f"space={given.space}", *given.overrides)
    print(
        f"{' '.join(words)}; {given.seeds} seeds; trials until the pick is within 1 %, {given.trials} at most",
        flush=True,
    )
    with ProcessPoolExecutor(given.workers) as pool:
        for it in ELSEWHERE:
            needed = {}
            for arm in given.arms.split(","):
                jobs = [
                    Job(arm, words, it.name, seed, given.trials, start_of(arm, words, ""))
                    for seed in range(given.seeds)
                ]
                needed[arm] = np.array(list(pool.map(_elsewhere_job, jobs, chunksize=5)))
            line = "  ".join(f"{arm} {n.mean():.1f} (median {np.median(n):.0f})" for arm, n in needed.items())
            ratio = needed[given.arms.split(",")[0]].mean() / needed["cold"].mean()
            print(f"  {it.name:22} {line}   {given.arms.split(',')[0]} / cold {ratio:.2f}", flush=True)


def grid(given: argparse.Namespace) -> None:
    words = (f"space={given.space}", *given.overrides)
    names = [name for name in models() if given.models.lower() in name.lower()]
    spread = {name: best_of(on_grid(models()[name], composed_for(words)), composed_for(words).space) for name in names}
    print(
        f"{' '.join(words)}; {given.seeds} seeds; share within 1 % by trial 4, 8; median regret in % at {AT}",
        flush=True,
    )
    with ProcessPoolExecutor(given.workers) as pool:
        for arm in given.arms.split(","):
            began, regrets, good = time.perf_counter(), {}, [0, 0]
            for name in names:
                start = start_of(arm, words, name)
                jobs = [Job(arm, words, name, seed, given.trials, start) for seed in range(given.seeds)]
                found = np.array(list(pool.map(_grid_job, jobs, chunksize=5)))
                regret = np.minimum(found / spread[name] - 1, 1.0)
                regrets[name] = regret
                within = [(regret[:, at - 1] <= WITHIN).mean() for at in (4, 8)]
                good = [good[0] + (within[0] >= 0.9), good[1] + (within[1] >= 0.95)]
                line = " ".join(f"{100 * np.median(regret[:, at - 1]):5.2f}" for at in AT if at <= given.trials)
                print(f"  {arm:7} {name.split('/')[1]:40} {within[0]:.2f} {within[1]:.2f}   {line}", flush=True)
            every = np.concatenate(list(regrets.values()))
            shares = " ".join(f"{(every[:, at - 1] <= WITHIN).mean():.3f}" for at in AT if at <= given.trials)
            line = " ".join(f"{100 * np.median(every[:, at - 1]):.3f}" for at in AT if at <= given.trials)
            bar = f".90 by trial 4 for {good[0]} and .95 by trial 8 for {good[1]} of {len(names)} models"
            took = time.perf_counter() - began
            print(f"{arm:7} all: within 1 % {shares}; median regret {line} %; {bar} ({took:.0f} s)", flush=True)


def _transfer_job(job: Job) -> list[float]:
    """Picks on a model where a sweep over another, of 24 trials, is transferred from; ``Job.start`` names that one."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    composed, (small, factor) = composed_for(job.words), job.start
    landscape, rate = on_grid(models()[job.name], composed), rates_of(composed)
    start, prior = list(composed.start), []
    if job.arm != "portfolio":
        before = optuna.create_study(sampler=optuna.samplers.RandomSampler(10_000 + job.seed))
        noises, there = np.random.default_rng(50_000 + job.seed).normal(0, NOISE, 24), []
        for noise in noises:
            values = suggest(composed.space, before.ask())
            loss = on_grid(models()[small], composed)(values)
            if math.isfinite(loss):
                there.append((loss + noise, RatePoint(rate(values) * factor, values["lora.rank"], values)))
        there.sort(key=lambda it: it[0])
        moved = placed([point for _, point in there], composed.space, composed.template.lora)
        start, prior = [*moved[:FIRST], *start], moved[FIRST:] if job.arm == "prior" else []
    return picks(search_trials("ours", composed, landscape, NOISE, job.seed, job.trials, start, prior))


def transfer(given: argparse.Namespace) -> None:
    """From the narrowest models of the grid; with their rates as they are, and by the width rule."""
    words = (f"space={given.space}", *given.overrides)
    sizes = {"Llama-3.2-1B": 2048, "Qwen3.5-4B": 2560, "Qwen3-8B": 4096, "Llama-3.1-8B": 4096, "Qwen3-32B": 5120}
    sizes |= {"Llama-3.3-70B-Instruct": 8192, "Qwen3.5-27B": 5120, "Qwen3.5-9B-Base": 4096}
    of = {name.split("/")[1]: name for name in models()}
    with ProcessPoolExecutor(given.workers) as pool:
        for small in ("Llama-3.2-1B", "Qwen3.5-4B"):
            for arm in ("portfolio", "start", "start as it is", "prior"):
                every = []
                for name in [it for it in sizes if sizes[it] > sizes[small]]:
                    best = best_of(on_grid(models()[of[name]], composed_for(words)), composed_for(words).space)
                    kind = "qwen" if "Qwen" in name else "llama"
                    factor = 1.0 if arm == "start as it is" else rate_factor(sizes[name], kind, sizes[small])
                    made = (arm, words, of[name])
                    jobs = [Job(*made, seed, given.trials, (of[small], factor)) for seed in range(given.seeds)]
                    every.append(np.array(list(pool.map(_transfer_job, jobs, chunksize=5))) / best - 1)
                regret = np.minimum(np.concatenate(every), 1.0)
                shares = " ".join(f"{(regret[:, at - 1] <= WITHIN).mean():.3f}" for at in AT if at <= given.trials)
                line = " ".join(f"{100 * np.median(regret[:, at - 1]):.2f}" for at in AT if at <= given.trials)
                print(f"from {small}: {arm:16} within 1 % {shares}; median regret {line} %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["grid", "elsewhere", "transfer", "portfolio"])
    parser.add_argument("overrides", nargs="*", default=[LARGE])
    parser.add_argument("--space", default="wide")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--models", default="", help="part of their names")
    parser.add_argument("--arms", default="ours,judged,cold,optuna,random")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_intermixed_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if given.what == "portfolio":
        for point in learnt(list(models())):
            print(f"- {{rate: {point.rate:.2e}, rank: {point.rank}}}")
        return
    {"grid": grid, "elsewhere": elsewhere, "transfer": transfer}[given.what](given)


if __name__ == "__main__":
    main()
