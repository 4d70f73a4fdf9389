"""What a sweep would do, before it does it: its data audited, its costs probed, its end foretold. Starts no Ray."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sweeps.checks.simulate import Cost, Decide, Forecast
from sweeps.compose.compose import Composed
from sweeps.process import gc_pause
from sweeps.process.installation import shell_path
from sweeps.space.dimensions import suggest
from trainer.config import DataConfig, TrialConfig, pack_refusal
from trainer.data.audit import Audit, Entry, audit, warnings
from trainer.data.dataset import Dataset, Row
from trainer.evaluation.bias.items import BiasItems
from trainer.preload import import_libraries

_RAY_SECONDS = 6.0  # Ray's start and the trials' first processes, on two cores
_TURNOVER_SECONDS = 0.3  # between two trials in a slot
_END_SECONDS = 2.0  # ranking, and W&B's last words
_DRAWN = 64  # configurations that the estimate is made of, where the sweep has more


@dataclass
class Check:
    """Everything found, for programs; ``problems`` is for people: ``(error or warning, sentence)``, errors first."""

    plan: dict[str, Any] = field(default_factory=dict)
    audit: Audit | None = None
    lengths: dict[str, Any] = field(default_factory=dict)
    precisions: dict[str, dict[str, float]] = field(default_factory=dict)
    estimate: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not any(kind == "error" for kind, _ in self.problems)

    def as_dict(self) -> dict[str, Any]:
        found = {name: value for name, value in vars(self).items() if name not in ("audit", "problems")}
        problems = [{"kind": kind, "message": message} for kind, message in self.problems]
        return {"ok": self.ok, **found, "audit": asdict(self.audit) if self.audit else {}, "problems": problems}


def plan(composed: Composed) -> dict[str, Any]:
    """What the config alone says."""
    config = composed.config
    return {
        "name": config.sweep.name,
        "folder": shell_path(f"{config.sweep.dir}/{config.sweep.name}"),
        "task": config.task.name,
        "engine": config.engine.name,
        "trials": config.search.trials,
        "given": len(composed.start),
        "sampler": str(config.sampler.get("_target_", "")).rsplit(".", 1)[-1],
        "scheduler": str(config.scheduler.get("_target_", "")).rsplit(".", 1)[-1],
        "max_steps": config.train.max_steps,
        "batch_size": config.train.batch_size,
        "rungs": list(config.train.rungs),
        "space": {path: str(dimension) for path, dimension in composed.space.items()},
    }


def entries(rows: Sequence[Row]) -> Iterator[Entry]:
    """Rows as the audit reads them: all of their text, and the label where there is one."""
    for row in rows:
        yield Entry(row.content, row.label, row.place)


def audited(dataset: Dataset, config: DataConfig, bias: BiasItems) -> tuple[Audit, list[tuple[str, str]]]:
    """The audit of a data set and what to tell of it.

    Args:
        bias: what the sweep measures bias on, whose sentences are looked for among the training rows.
    """
    found = audit(list(entries(dataset.train)), list(entries(dataset.validation)), bias.sentences())
    return found, warnings(found, config.allow_overlap)


def drawn(composed: Composed, n: int) -> list[TrialConfig]:
    """The first ``n`` trials: the points of ``search.start_from``, then points drawn at random."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=composed.config.sweep.seed))
        trials = []
        for number in range(n):
            given = composed.start[number] if number < len(composed.start) else {}
            if given:
                study.enqueue_trial(dict(given))
            trials.append(composed.trial(f"t{number:04}", suggest(composed.space, study.ask())))
        return trials
    finally:
        optuna.logging.set_verbosity(before)


def estimated(composed: Composed, dataset: Dataset, check: Check) -> None:
    """Probe the machine and fill in lengths, precisions and the estimate. Raises LorasweepError."""
    began = time.monotonic()
    with gc_pause.paused():
        import_libraries()
        import torch

        from sweeps.checks.doctor import usable_cores
        from sweeps.checks.probe import Prober
        from trainer.models.base_model import available_precisions, best_device, slow_precisions

    config = composed.config
    device = best_device()
    threads = config.resources.threads or max(1, int(usable_cores()))
    torch.set_num_threads(threads)
    able = [name for name, fault in available_precisions(device).items() if not fault]
    told = len(composed.notes)
    composed = composed.on_machine(able, slow_precisions(device))
    check.problems += [("warning", note) for note in composed.notes[told:]]
    imports = time.monotonic() - began
    prober = Prober(dataset, device, config.engine)
    trials = _estimable(drawn(composed, min(config.search.trials, _DRAWN)))
    costs, slots = [], []
    startup = _RAY_SECONDS + imports
    scored = 0.0
    item_tokens, parameters, n_validation = 0.0, 0, 0
    check.lengths = {}
    for precision in composed.precisions:
        mine = [trial for trial in trials if trial.precision == precision]
        example = (mine or _estimable([composed.trial("probe", {**_first(composed), "precision": precision})]))[0]
        probe = prober.probe(example)
        n_validation = prober.n_validation(example)
        if not check.lengths:
            check.lengths = {split: asdict(found) for split, found in prober.lengths(example).items()}
        fit = 1 if config.engine.name == "hf" or pack_refusal(config.lora) else probe.budget.slots(example)
        asked = config.resources.slots
        here = asked if isinstance(asked, int) else fit
        costs += [prober.cost(trial, probe, n_validation) for trial in mine]
        slots.append(here)
        startup += probe.load_seconds + probe.probe_seconds
        item_tokens, parameters = probe.item_tokens, probe.parameters
        one = prober.cost(example, probe, n_validation)
        scored = max(scored, n_validation * probe.item_seconds + one.rung_seconds)
        check.precisions[precision] = {
            "base_bytes": probe.base_bytes,
            "trial_bytes": max(probe.budget.pack_bytes([trial]) for trial in mine or [example]),
            "free_bytes": probe.budget.bytes_free,
            "slots": here,
            "step_seconds": one.own + one.shared,
            "tokens_per_second": one.tokens / (one.own + one.shared),
            "score_seconds": one.rung_seconds,
        }
        prober.forget()
    costs = _repeated(costs, config.search.trials)
    devices = max(1, torch.cuda.device_count()) if config.resources.gpus_per_trial != 0 else 1
    side_by_side = max(1, min([*slots, config.search.trials, config.ray.max_concurrent_trials or 10**9]))
    played = _play(composed, costs, side_by_side, devices)
    baselines = len(config.baselines) * scored / devices
    seconds = startup + played.seconds + baselines + _END_SECONDS
    hours = seconds * devices / 3600
    price = config.resources.price_per_hour
    scored_tokens = item_tokens * (
        played.scorings * min(config.eval.rung_items, n_validation)
        + played.completed * max(n_validation - config.eval.rung_items, 0)
        + len(config.baselines) * n_validation
    )
    check.estimate = {
        "seconds": seconds,
        "low": seconds - played.seconds + played.low,
        "high": seconds - played.seconds + played.high,
        "startup_seconds": startup,
        "baseline_seconds": baselines,
        "slots": side_by_side,
        "devices": devices,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        "completed": played.completed,
        "steps": played.steps,
        "tokens": played.tokens,
        # A frozen weight takes part in the forward pass and in the gradient of its input: 2 + 2 operations a token.
        "flops": parameters * (4 * played.tokens + 2 * scored_tokens),
        "device_hours": hours,
        "cost": None if price is None else hours * price,
    }
    check.problems += _limits(composed, check)


def _first(composed: Composed) -> dict[str, Any]:
    return dict(composed.start[0]) if composed.start else {}


def _estimable(trials: list[TrialConfig]) -> list[TrialConfig]:
    """What only engine=hf can do is left out: it costs about the same, and a probe is a pack's."""
    from dataclasses import replace

    return [replace(t, lora=replace(t.lora, dora=False, bias="none", modules_to_save=[])) for t in trials]


def _repeated(costs: list[Cost], n: int) -> list[Cost]:
    return [costs[i % len(costs)] for i in range(n)]


def _play(composed: Composed, costs: list[Cost], slots: int, devices: int) -> Forecast:
    from sweeps.checks.simulate import forecast
    from sweeps.search.scheduler import StandIn, build_scheduler

    config = composed.config

    def decider() -> Decide:
        scheduler = build_scheduler(config.scheduler, config.train.rungs)
        added: set[int] = set()

        def decide(trial: int, step: int, score: float) -> bool:
            own: Any = StandIn(f"t{trial:04}")
            if trial not in added:
                added.add(trial)
                scheduler.on_trial_add(None, own)
            result = {"step": step, "objective": score, "training_iteration": step, "time_total_s": float(step)}
            return scheduler.on_trial_result(None, own, result) != "STOP"

        return decide

    return forecast(costs, slots, devices, decider, _TURNOVER_SECONDS, config.sweep.seed)


def _limits(composed: Composed, check: Check) -> Iterator[tuple[str, str]]:
    """What would not do: memory, and the budgets of ``search.budget``."""
    for precision, found in check.precisions.items():
        if found["trial_bytes"] > found["free_bytes"]:
            yield (
                "warning",
                f"precision={precision}: a trial needs about {found['trial_bytes'] / 1e9:.1f} GB beside the model, and"
                f" {found['free_bytes'] / 1e9:.1f} GB can be used. Raise train.accumulation, lower data.max_length, or"
                " engine.activation_checkpointing=true.",
            )
    estimate = check.estimate
    hours = estimate["seconds"] / 3600
    budget: Mapping[str, Any] = composed.resolved()["search"].get("budget", {})
    needs = {"hours": hours, "device_hours": estimate["device_hours"], "tokens": estimate["tokens"]}
    for name, needed in needs.items():
        limit = budget.get(name)
        if limit is not None and needed > limit:
            share = limit / needed
            yield (
                "warning",
                f"search.budget.{name}={limit:g} ends the sweep at about {share:.0%} of it: all of it needs about"
                f" {needed:.2g}. Ask for fewer trials or steps, or raise it.",
            )
