"""What a sweep would do, before it does it: its data audited, its costs probed, its end foretold. Starts no Ray."""

import bisect
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from analysis.buckets.bucket import joined
from sweeps.checks.length import (
    END_SECONDS,
    Measured,
    asked_about,
    baseline_seconds,
    choose,
    is_open,
    is_timed,
    max_concurrent,
)
from sweeps.checks.simulate import Cost, Forecast, play
from sweeps.compose.compose import Composed
from sweeps.config import SweepConfig, computed_baselines, limit_seconds
from sweeps.process import gc_pause
from sweeps.process.installation import shell_path
from sweeps.space.dimensions import suggest
from sweeps.space.grid import points
from trainer.config import DataConfig, TrialConfig, pack_refusal
from trainer.data.audit import Audit, Entry, audit, warnings
from trainer.data.dataset import Dataset, Row
from trainer.evaluation.bias.items import BiasItems
from trainer.preload import import_libraries

if TYPE_CHECKING:
    from sweeps.checks.probe import Prober

_RAY_SECONDS = 6.0  # Ray's start and the trials' first processes, on two cores
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
        "folder": shell_path(joined(config.sweep.dir, str(config.sweep.name))),
        "task": config.task.name,
        "engine": config.engine.name,
        "trials": config.search.trials,
        "given": len(composed.start),
        "sampler": str(config.sampler.get("_target_", "")).rsplit(".", 1)[-1],
        "scheduler": str(config.scheduler.get("_target_", "")).rsplit(".", 1)[-1],
        "max_steps": config.train.max_steps,
        "batch_size": config.train.batch_size,
        "max_length": config.data.max_length,
        "rungs": list(config.train.rungs),
        "space": {path: str(dimension) for path, dimension in composed.space.items()},
        "points": points(composed.space, composed.constraints().allows),
    }


def entries(rows: Sequence[Row]) -> Iterator[Entry]:
    """Rows as the audit reads them: all of their text, and the label where there is one."""
    for row in rows:
        yield Entry(row.content, row.label, row.place)


def audited(
    dataset: Dataset, config: DataConfig, bias: BiasItems, test: Sequence[Row] = ()
) -> tuple[Audit, list[tuple[str, str]]]:
    """The audit of a data set and what to tell of it.

    Args:
        bias: what the sweep measures bias on, whose sentences are looked for among the training rows.
        test: test rows, where there are some.
    """
    train, validation = list(entries(dataset.train)), list(entries(dataset.validation))
    findings = audit(train, validation, bias.sentences(), list(entries(test)))
    return findings, warnings(findings, config.allow_overlap)


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


@dataclass(frozen=True)
class Estimate:
    """What the probes of a machine say about a sweep.

    Attributes:
        lengths: split → tokens of its rows.
        precisions: precision → bytes, slots and seconds of a trial.
        figures: of the whole sweep: seconds, steps, tokens, operations, cost.
        problems: (error or warning, sentence).
        composed: the sweep as it would run here.
        chosen: in a sentence, what its config left open.
    """

    lengths: dict[str, Any]
    precisions: dict[str, dict[str, float]]
    figures: dict[str, Any]
    problems: list[tuple[str, str]]
    composed: Composed
    chosen: str


@dataclass(frozen=True)
class Probed:
    """One precision, measured.

    Attributes:
        figures: for the terminal and for programs.
        costs: of the sweep's trials at this precision.
        slots: trials side by side.
        startup_seconds: to load the model and to measure how many trials fit.
        scoring_seconds: of all validation items and the bias sets.
        item_tokens: mean tokens of a validation item.
        parameters: that take part in each token.
        n_validation: validation items.
        n_train: training rows.
        lengths: split → tokens of its rows.
        lost: a sentence on the loss-bearing tokens that ``data.max_length`` cuts, or "".
    """

    figures: dict[str, float]
    costs: list[Cost]
    slots: int
    startup_seconds: float
    scoring_seconds: float
    item_tokens: float
    parameters: int
    n_validation: int
    n_train: int
    lengths: dict[str, Any]
    lost: str = ""


def estimate(composed: Composed, dataset: Dataset) -> Estimate:
    """Probe this machine at each precision of the sweep, and simulate the sweep with what it measured.

    Raises:
        LorasweepError: where the model or a precision cannot be used here.
    """
    began = time.monotonic()
    with gc_pause.paused():
        import_libraries()
        import torch

        from sweeps.checks.doctor import usable_cores
        from sweeps.checks.probe import Prober
        from trainer.models.base_model import available_precisions, best_device, slow_precisions

    config = composed.config
    share = config.resources.gpus_per_trial
    device = torch.device("cpu") if share == 0 else best_device()
    torch.set_num_threads(config.resources.threads or max(1, int(usable_cores())))
    able = [name for name, fault in available_precisions(device).items() if not fault]
    notes_before = len(composed.notes)
    composed = composed.on_machine(able, slow_precisions(device))
    notes = [("warning", note) for note in composed.notes[notes_before:]]
    notes_before = len(composed.notes)
    imports = time.monotonic() - began

    prober = Prober(dataset, device, config.engine, gpu_share=min(share or 1.0, 1.0))
    devices = max(1, math.floor(torch.cuda.device_count() / (share or 1.0) + 1e-9)) if share != 0 else 1
    if is_open(composed):
        sizes = prober.sizes(asked_about(composed), is_timed(composed))
        composed = choose(composed, Measured(sizes, devices, _RAY_SECONDS + time.monotonic() - began))
        config = composed.config
    trials = _estimable(drawn(composed, min(config.search.trials, _DRAWN)))
    probed: dict[str, Probed] = {}
    for precision in composed.precisions:
        mine = [trial for trial in trials if trial.precision == precision]
        example = (mine or _estimable([composed.trial("probe", {**_first(composed), "precision": precision})]))[0]
        probed[precision] = _probe(prober, config, example, mine, with_lengths=not probed)
        prober.forget()

    startup = _RAY_SECONDS + imports + sum(it.startup_seconds for it in probed.values())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    figures = whole_sweep(config, list(probed.values()), devices, startup) | {"device": name}
    precisions = {precision: it.figures for precision, it in probed.items()}
    lengths = next(iter(probed.values())).lengths
    chosen = " ".join(composed.notes[notes_before:])
    lost = next(iter(probed.values())).lost
    problems = [*notes, *([("warning", lost)] if lost else []), *_limits(config, precisions, figures)]
    return Estimate(lengths, precisions, figures, problems, composed, chosen)


def _probe(
    prober: "Prober", config: SweepConfig, example: TrialConfig, mine: list[TrialConfig], with_lengths: bool
) -> Probed:
    """Measure one precision.

    Args:
        prober: of this machine.
        config: of the sweep.
        example: a trial at the precision, to measure with.
        mine: the trials of the sweep at the precision.
        with_lengths: whether to count the tokens of rows too.
    """
    probe = prober.probe(example)
    n_validation = prober.n_validation(example)
    fit = 1 if config.engine.name == "hf" or pack_refusal(config.lora) else probe.budget.slots(example)
    slots = config.resources.slots if isinstance(config.resources.slots, int) else fit
    one = prober.cost(example, probe, n_validation)
    figures = {
        "base_bytes": probe.base_bytes,
        "trial_bytes": max(probe.budget.pack_bytes([trial]) for trial in mine or [example]),
        "free_bytes": probe.budget.bytes_free,
        "slots": slots,
        "step_seconds": one.own + one.shared,
        "tokens_per_second": one.tokens / (one.own + one.shared),
        "score_seconds": one.rung_seconds,
        "answer_seconds": probe.answer_seconds,
    }
    return Probed(
        figures,
        [prober.cost(trial, probe, n_validation) for trial in mine],
        slots,
        probe.load_seconds + probe.probe_seconds,
        one.rung_seconds + one.final_seconds,
        probe.item_tokens,
        probe.parameters,
        n_validation,
        len(prober.dataset.train),
        {split: asdict(it) for split, it in prober.lengths(example).items()} if with_lengths else {},
        prober.lost(example),
    )


def whole_sweep(config: SweepConfig, probed: Sequence[Probed], devices: int, startup: float) -> dict[str, Any]:
    """Time, work and cost of the whole sweep, simulated with the costs of its trials, of which as many are begun as
    ``search.time`` has room for.

    Args:
        config: of the sweep.
        probed: each precision.
        devices: that train.
        startup: seconds until the first trial trains.
    """
    costs = [cost for it in probed for cost in it.costs]
    slots = [it.slots for it in probed]
    slow = max(probed, key=lambda it: it.scoring_seconds)
    baselines = baseline_seconds(config, slow.n_train, slow.n_validation, slow.scoring_seconds) / devices
    besides = startup + baselines + END_SECONDS
    limit = limit_seconds(config.search.time)

    def playing(trials: int) -> tuple[int, Forecast]:
        searched = replace(config, search=replace(config.search, trials=trials))
        side_by_side = max(1, max_concurrent(searched, [min(slots)] * devices) // devices)
        return side_by_side, play(config, _repeated(costs, trials), side_by_side, devices)

    trials = config.search.trials
    side_by_side, played = playing(trials)
    if besides + played.seconds > limit:  # as many as search.time has room for
        trials = max(1, bisect.bisect(range(1, trials), limit - besides, key=lambda n: playing(n)[1].seconds))
        side_by_side, played = playing(trials)
    seconds = min(besides + played.seconds, limit)
    hours, price = seconds * devices / 3600, config.resources.price_per_hour
    last = probed[-1]
    scored_tokens = last.item_tokens * (
        played.scorings * min(config.eval.rung_items, last.n_validation)
        + played.completed * max(last.n_validation - config.eval.rung_items, 0)
        + len(computed_baselines(config)) * last.n_validation
    )
    return {
        "seconds": seconds,
        "low": min(besides + played.low, limit),
        "high": min(besides + played.high, limit),
        "trials": trials,
        "startup_seconds": startup,
        "baseline_seconds": baselines,
        "slots": side_by_side,
        "devices": devices,
        "completed": played.completed,
        "steps": played.steps,
        "tokens": played.tokens,
        # A frozen weight takes part in the forward pass and in the gradient of its input: 2 + 2 operations a token.
        "flops": last.parameters * (4 * played.tokens + 2 * scored_tokens),
        "device_hours": hours,
        "cost": None if price is None else hours * price,
    }


def _first(composed: Composed) -> dict[str, Any]:
    return dict(composed.start[0]) if composed.start else {}


def _estimable(trials: list[TrialConfig]) -> list[TrialConfig]:
    """What only engine=hf can do is left out: it costs about the same, and a probe is a pack's."""
    return [replace(t, lora=replace(t.lora, dora=False, bias="none", modules_to_save=[])) for t in trials]


def _repeated(costs: list[Cost], n: int) -> list[Cost]:
    return [costs[i % len(costs)] for i in range(n)]


def _limits(
    config: SweepConfig, precisions: Mapping[str, Mapping[str, float]], figures: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Warnings about what would not do: memory, and the budgets of ``search.budget``."""
    for precision, found in precisions.items():
        if found["trial_bytes"] > found["free_bytes"]:
            yield (
                "warning",
                f"precision={precision}: a trial needs about {found['trial_bytes'] / 1e9:.1f} GB beside the model, and"
                f" {found['free_bytes'] / 1e9:.1f} GB can be used. Raise train.accumulation, lower data.max_length, or"
                " engine.activation_checkpointing=true.",
            )
    budget = asdict(config.search.budget)
    needs = {"hours": figures["seconds"] / 3600, "device_hours": figures["device_hours"], "tokens": figures["tokens"]}
    for name, needed in needs.items():
        limit = budget.get(name)
        if limit is not None and needed > limit:
            share = limit / needed
            yield (
                "warning",
                f"search.budget.{name}={limit:g} ends the sweep at about {share:.0%} of it: all of it needs about"
                f" {needed:.2g}. Ask for fewer trials or steps, or raise it.",
            )
