"""The typed configuration of a whole sweep: the parts of a trial at the root, and what belongs to the sweep.

``conf/`` fills these classes; a key that is not here is refused. ``schema`` lists every dotted path with its type and
range, which is what error messages, the search space and the overrides are checked against.
"""

import functools
import math
import operator
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Union, get_args, get_origin, get_type_hints

from analysis.bias_sets import BIAS_SETS
from analysis.constraints import Constraints
from analysis.errors import ConfigError, did_you_mean, nearest_names
from analysis.metrics import METRICS
from analysis.objective import DIRECTIONS
from trainer.config import (
    LARGEST,
    PRECISIONS,
    BiasConfig,
    DataConfig,
    EngineConfig,
    EvalConfig,
    FewShotConfig,
    LoraSettings,
    MitigationConfig,
    ModelConfig,
    OptimConfig,
    RetrievalConfig,
    TaskConfig,
    TrainConfig,
    TrialConfig,
    brief,
    key,
    pack_refusal,
    sharding_refusal,
)
from trainer.data.schemas import LABELLED
from trainer.evaluation.metric_names import metric_names

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}
# Keyword arguments of the usual samplers and schedulers: known here, as importing their classes takes seconds.
KEYWORDS = {
    "ASHAScheduler": (
        "time_attr", "metric", "mode", "max_t", "grace_period", "reduction_factor", "brackets", "stop_last_trials",
    ),
    "MedianStoppingRule": (
        "time_attr", "metric", "mode", "grace_period", "min_samples_required", "min_time_slice", "hard_stop",
    ),
    "TPESampler": (
        "consider_prior", "prior_weight", "consider_magic_clip", "consider_endpoints", "n_startup_trials",
        "n_ei_candidates", "gamma", "weights", "seed", "multivariate", "group", "warn_independent_sampling",
        "constant_liar", "constraints_func",
    ),
    "GPSampler": (
        "seed", "independent_sampler", "n_startup_trials", "deterministic_objective", "constraints_func",
        "warn_independent_sampling",
    ),
    "RandomSampler": ("seed",),
}  # fmt: skip
BASELINES = ("majority", "linear", "frozen", "zero_shot", "few_shot", "retrieval")
_NEED_LABELS = ("majority", "linear", "frozen")


@dataclass
class SweepSettings:
    """Name, place and seed of a sweep."""

    name: str | None = None  # the sweep folder is <dir>/<name>
    dir: str = "runs"  # folder, or the URI of a place in a bucket
    seed: int = key(0, low=0, high=2**32 - 1)  # of the sampler and of the trials


@dataclass
class BudgetConfig:
    """Limits of a sweep: it stops at the first that is reached. null and {}: no limit."""

    hours: float | None = key(None, above=0.0)  # for which the sweep runs, all its runs added up
    device_hours: float | None = key(None, above=0.0)  # hours times the devices in use
    tokens: int | None = key(None, low=1)  # training tokens of all trials, padding not counted
    patience: int | None = key(None, low=1)  # trials that end in a row without a better objective
    target: dict[str, float] = field(default_factory=dict)  # metrics that one completed trial is to reach, all of them


@dataclass
class SearchConfig:
    """How much is searched, and from where."""

    trials: int = key(8, low=1)  # configurations to try, the points of start_from included
    # that the sweep may take, such as 15m: decides what is left open of epochs, trials and rungs, and is kept
    time: str | None = "auto"  # auto: 15m where neither the length nor the trials are named; null: no limit
    repeats: int = key(1, low=1)  # seeds with which each configuration is trained
    start_from: list[Any] = field(default_factory=lambda: ["portfolio"])  # points to try first: values, or portfolio
    warm_start: list[str] = field(default_factory=list)  # folders of earlier sweeps to learn from
    transfer_from: list[str] = field(default_factory=list)  # folders of sweeps over other models to start from
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    keep_adapters: int | None = key(None, low=1)  # how many adapters stay, those of the best trials; null: all


@dataclass
class TermConfig:
    """One metric of the objective."""

    metric: str = ""
    direction: str | None = key(None, choices=DIRECTIONS)  # null: the metric's own
    target: float | None = None  # in the metric's unit; for direction=target; null: the metric's own
    range: list[float] | None = None  # ends of the scale, lower first; null: the metric's own
    weight: float = key(1.0, low=0.0)  # 0 leaves the term out
    tolerance: float = key(0.0, low=0.0)  # in the metric's unit; for method=lexicographic


@dataclass
class ConstraintConfig:
    """A bound that a trial has to keep: ``at_least`` and ``at_most``, or not worse than a baseline by over a margin."""

    metric: str = ""
    at_least: float | None = None  # in the metric's unit
    at_most: float | None = None  # in the metric's unit
    baseline: str | None = None  # such as zero_shot; it must be among baselines
    margin: float = key(0.0, low=0.0)  # with baseline: how much worse is allowed, in the metric's unit
    enabled: bool = True  # false leaves it out


@dataclass
class ObjectiveConfig:
    """Terms and how they become one number over fixed ranges, higher is better."""

    name: str = "single"
    method: str = key("chebyshev", choices=("chebyshev", "lexicographic", "pareto"))
    ties: str = key("score", choices=("cost", "score"))  # what decides among trials that are tied with the best
    rho: float = key(0.05, low=0.0)  # weight of the sum beside the worst term
    terms: dict[str, TermConfig] = field(default_factory=dict)
    constraints: dict[str, ConstraintConfig] = field(default_factory=dict)  # trials that break one rank last


@dataclass
class TrackingConfig:
    """The trackers, each a class with its keywords, and the keys that their files refer to."""

    trackers: dict[str, dict[str, Any]] = field(default_factory=dict)  # name → _target_ and keyword arguments
    mode: str = key("offline", choices=("online", "offline", "disabled"))  # of W&B
    project: str = "lorasweep"  # at W&B
    entity: str | None = None  # W&B user or team
    uri: str | None = None  # where MLflow's runs go: server, folder or database; null: the sweep folder
    tags: list[str] = field(default_factory=list)
    predictions: int = key(200, low=0, high=10_000)  # rows of a completed trial's table of predictions; 0 = no table
    answers: int = key(0, low=0, high=10_000)  # rows of the table of what was written, texts and all; 0 = no table


@dataclass
class RayConfig:
    """The Ray cluster that runs the sweep."""

    address: str | None = None  # null: a new local Ray; in a Ray job, the job's cluster
    max_concurrent_trials: int | None = key(None, low=1)  # null: one a slot, at most 8 without a GPU


@dataclass
class ResourcesConfig:
    """What a trial may use of a machine."""

    gpus_per_trial: float | None = key(None, low=0.0)  # null: one where there is one, else 0; 2 and more: engine=hf
    workers_per_trial: int | None = key(None, low=1)  # processes that train a trial together; null: one a GPU
    slots: str | int = key("auto", low=1)  # trials side by side
    threads: int | None = key(None, low=1)  # torch threads a trial
    price_per_hour: float | None = key(None, low=0.0)  # of a device, in any currency; for lorasweep check
    rung_timeout: float | None = key(None, above=0.0)  # seconds from one rung of a trial to the next; null: no limit
    max_devices: int | None = key(None, low=1)  # device workers at a time; null: as many as there is work for
    wait: str | None = None  # how long to wait where there is no device, such as 30m; null: no limit
    idle_seconds: float = key(60.0, low=0.0)  # after which a device worker of a cluster that nobody needs is ended
    niceness: int = key(0, low=0, high=19)  # of the processes of a Ray of our own, added to the sweep's; Ray's own: 15

    @property
    def ranks(self) -> int:
        """Processes that train a trial together."""
        return self.workers_per_trial or max(1, int(self.gpus_per_trial or 1))


@dataclass
class SweepConfig:
    """Everything that decides a sweep."""

    precision: str = key("auto", choices=("auto", *PRECISIONS))  # auto: bf16 where the device is fast at it, else fp32
    seed: int = key(0, low=0, high=2**32 - 1)
    baselines: list[Any] = field(default_factory=lambda: ["zero_shot"])
    few_shot: FewShotConfig = field(default_factory=FewShotConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    sweep: SweepSettings = field(default_factory=SweepSettings)
    search: SearchConfig = field(default_factory=SearchConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mitigation: MitigationConfig = field(default_factory=MitigationConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    bias: BiasConfig = field(default_factory=BiasConfig)
    space: dict[str, Any] = field(default_factory=dict)  # nested like the config; sweeps/space/dimensions.py
    space_constraints: list[str] = field(default_factory=list)  # hold at every point; sweeps/space/constraints.py
    sampler: dict[str, Any] = field(default_factory=dict)  # _target_ and its arguments
    scheduler: dict[str, Any] = field(default_factory=dict)  # _target_ and its arguments
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)


@dataclass(frozen=True)
class Leaf:
    """One config key.

    Attributes:
        type: without ``None``.
        optional: whether it may be null.
        metadata: the range that ``key`` gave it.
    """

    type: Any
    optional: bool
    metadata: Mapping[str, Any]


def schema(cls: type = SweepConfig, prefix: str = "") -> dict[str, Leaf]:
    """Every config key: dotted path → type and range. A dictionary (``space``, ``data.topics``) is one key.

    Args:
        cls: the config class, whose fields may be config classes.
        prefix: put before each path.
    """
    hints = get_type_hints(cls)
    leaves: dict[str, Leaf] = {}
    for item in fields(cls):
        hint, path = hints[item.name], f"{prefix}{item.name}"
        if is_dataclass(hint) and isinstance(hint, type):
            leaves |= schema(hint, f"{path}.")
            continue
        optional = get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)
        if optional:
            rest = [arg for arg in get_args(hint) if arg is not type(None)]
            hint = rest[0] if len(rest) == 1 else functools.reduce(operator.or_, rest)
        leaves[path] = Leaf(hint, optional, item.metadata)
    return leaves


def misfits(config: Mapping[str, Any], cls: type = SweepConfig, prefix: str = "") -> list[tuple[str, str]]:
    """Where a nested mapping does not fit a config class: dotted path, and what is wrong with it as a sentence.

    Finds keys that the class does not have, and single values where keys are expected.

    Args:
        config: nested.
        cls: the config class.
        prefix: put before each path.
    """
    hints, problems = get_type_hints(cls), []
    for name, value in config.items():
        path, hint = f"{prefix}{name}", hints.get(str(name))
        inner: Any = get_args(hint)[1] if get_origin(hint) is dict else None
        if hint is None:
            beside = [f"{prefix}{known}" for known in hints]
            near = nearest_names(path, beside) or did_you_mean(path, [*schema(), *beside])
            problems.append((path, f"'{path}' is not a config key. {near}"))
        elif not (is_dataclass(hint) or inner):
            continue
        elif not isinstance(value, Mapping):
            problems.append((path, f"{path}={value!r}: expected keys below it."))
        elif isinstance(hint, type) and is_dataclass(hint):
            problems += misfits(value, hint, f"{path}.")
        elif inner is str:
            for entry, below in value.items():
                if isinstance(below, Mapping):
                    example = f"'{path}={{{entry}.{next(iter(below), '…')}: …}}'"
                    problems.append(
                        (f"{path}.{entry}", f"{path}.{entry}: expected text. For names with dots write {example}.")
                    )
        elif get_origin(inner) is dict or (isinstance(inner, type) and is_dataclass(inner)):
            for entry, below in value.items():
                if isinstance(below, Mapping):
                    problems += misfits(below, inner, f"{path}.{entry}.") if isinstance(inner, type) else []
                else:
                    problems.append((f"{path}.{entry}", f"{path}.{entry}={below!r}: expected keys below it."))
    return problems


def ranged(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Path, value and range of every key that is set, the entries of ``objective.terms`` and ``constraints`` included.

    Args:
        config: a config dataclass.
        prefix: put before each path.
    """
    for item in fields(config):
        value, path = getattr(config, item.name), f"{prefix}{item.name}"
        if is_dataclass(value):
            yield from ranged(value, f"{path}.")
        elif isinstance(value, dict):
            for name, entry in value.items():
                if is_dataclass(entry):
                    yield from ranged(entry, f"{path}.{name}.")
        elif value is not None:
            yield path, value, item.metadata


def measured(config: SweepConfig) -> set[str]:
    """Names of the metrics that every trial of this sweep yields."""
    return set(metric_names(config.task, config.bias, config.data, config.eval))


def computed_baselines(config: SweepConfig) -> list[str]:
    """The baselines that are scored here, by name: all but answers that were saved."""
    return [str(it) for it in config.baselines if not isinstance(it, Mapping)]


def saved_answers(config: SweepConfig) -> dict[str, str]:
    """Name of a row of the ranking → file of answers that another system wrote.

    Raises:
        ConfigError: for an entry of ``baselines`` that is no such thing, or a name that is taken.
    """
    saved: dict[str, str] = {}
    for entry in config.baselines:
        if not isinstance(entry, Mapping):
            continue
        shown = dict(entry)
        if "answers" not in entry or entry.keys() - {"answers", "name"}:
            raise ConfigError(
                f"baselines: {shown}: expected the name of a baseline, or {{answers: FILE, name: NAME}} with a file of"
                " JSON lines that another system wrote."
            )
        name = str(entry.get("name") or "answers")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or re.fullmatch(r"t[0-9]+", name):
            raise ConfigError(f"baselines: name={name!r}: expected letters, digits, '-' and '_', such as gpt4.")
        if name in saved or name in BASELINES:
            raise ConfigError(
                f"baselines: the name '{name}' is taken. Give another one: {{answers: FILE, name: NAME}}."
            )
        saved[name] = str(entry["answers"])
    return saved


def wants_answers(config: SweepConfig) -> bool:
    """Whether a term of the objective, a constraint or a target is a figure of what the model writes."""
    terms, constraints = config.objective.terms.values(), config.objective.constraints.values()
    named = [*(it.metric for it in terms), *(it.metric for it in constraints), *config.search.budget.target]
    return any(str(name).startswith("generate.") for name in named)


def check_sweep(config: SweepConfig) -> None:
    """Check what only several keys together, or the sweep as a whole, can get wrong.

    Raises:
        ConfigError: at the first fault.
    """
    _check_sources(config)
    _check_bias(config)
    _check_baselines(config)
    if config.eval.answers:
        from trainer.answers.text_metrics import check  # sacrebleu and jsonschema: a moment's import

        check(config.eval)
    slots = config.resources.slots
    if isinstance(slots, str) and slots != "auto":
        raise ConfigError(f"resources.slots={slots!r}: expected auto or a whole number of at least 1.")
    _check_engine(config)
    _check_ranks(config)
    _check_objective(config)
    _check_scheduler(config)
    _check_budget(config)


def _check_bias(config: SweepConfig) -> None:
    """Sets that compare the likelihood of texts need a decoder."""
    for bias_set in BIAS_SETS.values():
        value = bias_set.value(bias=config.bias, data=config.data)
        if config.task.name == "classification" and value and "classification" not in bias_set.tasks:
            off = "null" if isinstance(value, str) else 0
            raise ConfigError(
                f"{bias_set.path}={value} with task=classification: {bias_set.subject or bias_set.title} compares the"
                f" likelihood of sentences, which a classifier does not give. Use {bias_set.path}={off}, bias=none, or"
                " task=completion."
            )


def _check_baselines(config: SweepConfig) -> None:
    """Baselines, and generation."""
    shown = str(config.eval.generate).lower()
    if config.eval.answers and config.task.name == "classification":
        raise ConfigError(f"eval.generate={shown} with task=classification: a classification head writes nothing.")
    if config.eval.answers and config.data.schema == "text":
        raise ConfigError(f"eval.generate={shown} with data.schema=text: texts have no prompt that is to be answered.")
    saved = saved_answers(config)
    if saved and not config.eval.answers:
        raise ConfigError(
            "baselines: saved answers are compared with what trials write, and eval.generate is false. Set"
            " eval.generate=final or rung, or leave them out."
        )
    for name in computed_baselines(config):
        if name not in BASELINES:
            raise ConfigError(f"baselines: '{name}' is not a baseline. {did_you_mean(name, BASELINES)}")
        if config.baselines.count(name) > 1:
            raise ConfigError(f"baselines: '{name}' is named twice. Name it once.")
    schema = config.data.schema
    without = {"completion": _NEED_LABELS, "chat": _NEED_LABELS, "text": (*_NEED_LABELS, "few_shot", "retrieval")}
    for name in without.get(schema or "", ()):
        if name in config.baselines:
            why = "there are no labels" if name in _NEED_LABELS else "examples need rows of a prompt and its completion"
            raise ConfigError(f"baselines: {name} with data.schema={schema}: {why}. Leave it out.")
    if config.task.name == "classification" and "few_shot" in config.baselines:
        raise ConfigError(
            "baselines: few_shot with task=classification: a classification head reads no prompt. Use retrieval (the"
            " vote of the nearest training rows), or task=completion."
        )


def _check_ranks(config: SweepConfig) -> None:
    """Trials over several GPUs, or several processes on CPUs."""
    gpus, workers, engine = config.resources.gpus_per_trial, config.resources.workers_per_trial, config.engine
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        raise ConfigError(
            f"resources.gpus_per_trial={gpus:g}: above 1, a trial trains on whole GPUs. Use {int(gpus)} or"
            f" {int(gpus) + 1}; or a share of one GPU, such as 0.5."
        )
    if workers is not None and workers > 1 and gpus not in (0, workers):
        given = "null" if gpus is None else f"{gpus:g}"
        raise ConfigError(
            f"resources.workers_per_trial={workers} with resources.gpus_per_trial={given}: each process has a GPU of"
            f" its own, or none. Use resources.gpus_per_trial={workers}, or 0 to train on CPUs."
        )
    if workers == 1 and gpus is not None and gpus > 1:
        raise ConfigError(
            f"resources.workers_per_trial=1 with resources.gpus_per_trial={gpus:g}: a process trains on one GPU. Leave"
            " workers_per_trial out, or use resources.gpus_per_trial=1."
        )
    ranks = config.resources.ranks
    if ranks > 1 and engine.name != "hf":
        key = f"gpus_per_trial={gpus:g}" if gpus else f"workers_per_trial={workers}"
        raise ConfigError(
            f"resources.{key} with engine={engine.name}: a pack trains on one device. Use engine=hf, which trains a"
            " trial over several; or resources.gpus_per_trial=1, where the model fits one GPU: packs use it better."
        )
    if engine.sharding == "fsdp":
        if ranks == 1:
            raise ConfigError(
                "engine.sharding=fsdp shards the base model over the devices of a trial, and there is one. Use"
                " resources.gpus_per_trial=2 or more with engine=hf, or leave it out."
            )
        refused = sharding_refusal(config.precision, config.lora)
        if refused:
            raise ConfigError(refused)


def _check_engine(config: SweepConfig) -> None:
    engine = config.engine
    if engine.name == "packed":
        refusal = pack_refusal(config.lora)
        if refusal:
            raise ConfigError(refusal)
        return
    if engine.kernel != "auto":
        raise ConfigError(f"engine.kernel={engine.kernel} with engine=hf: only packs have kernels. Use engine=packed.")
    if not engine.cut_by_length:
        raise ConfigError("engine.cut_by_length=false with engine=hf: only packs cut their passes. Leave it out.")
    if engine.pass_cost is not None:
        raise ConfigError(f"engine.pass_cost={engine.pass_cost:g} with engine=hf: only packs cut their passes.")
    if isinstance(config.resources.slots, int) and config.resources.slots > 1:
        raise ConfigError(
            f"resources.slots={config.resources.slots} with engine=hf, which trains one trial at a time."
            " Use engine=packed, or a share of a GPU for each trial: resources.gpus_per_trial=0.5"
        )


def _check_sources(config: SweepConfig) -> None:
    model, data = config.model, config.data
    needed = {"package": "model.package", "local": "model.path", "hub": "model.name"}[model.source]
    if not getattr(model, needed.split(".")[1]):
        raise ConfigError(f"model.source={model.source} needs {needed}: add {needed}=…")
    if data.source != "newsgroups":
        if not data.train:
            raise ConfigError(f"data={data.source} needs data.train: add data.train={_example(data.source)}")
        if not data.validation and not data.split.validation:
            raise ConfigError(
                f"data={data.source} needs data.validation: add data.validation={_example(data.source)}, or take a"
                " share of the rows of data.train: data.split.validation=0.2"
            )
    if config.task.name == "classification" and data.schema not in (None, LABELLED):
        raise ConfigError(
            f"data.schema={data.schema} with task=classification, which needs labels. Use data.schema=label with"
            " data.text and data.label, or task=completion."
        )


def _example(source: str) -> str:
    return {"folder": "DIR", "hub": "SPLIT", "package": "FILE"}.get(source, f"FILE.{source}")


def _check_objective(config: SweepConfig) -> None:
    known = measured(config)
    if not config.objective.terms:
        raise ConfigError(
            "objective.terms: no term has a weight above 0. Use objective=single, or give a term a weight."
        )
    for name, term in config.objective.terms.items():
        where = f"objective.terms.{name}"
        if term.metric not in known:
            hint = " Bias needs bias=fast or bias=full." if term.metric.startswith("bias.") else ""
            if term.metric in METRICS and term.metric.startswith("generate.") and config.eval.answers != "rung":
                hint = (
                    f" Trials are compared at rungs, and eval.generate={config.eval.generate}: use eval.generate=rung."
                )
            raise ConfigError(
                f"{where}.metric={term.metric!r} is not measured in this sweep.{hint}"
                f" {did_you_mean(term.metric, known)} To leave the term out: {where}.weight=0"
            )
        ends = term.range or []  # filled in where the config gives none
        if len(ends) != 2 or not ends[0] < ends[1] or not all(map(math.isfinite, ends)):
            raise ConfigError(f"{where}.range={term.range}: expected two numbers, the lower first, such as [0, 1].")
        if (term.direction == "target") != (term.target is not None):
            raise ConfigError(
                f"{where}: direction={term.direction} with target={term.target}."
                f" A target goes with direction=target and with no other: set {where}.target, or change the direction."
            )
        _check_reachable(f"{where}.target", term.metric, term.target)
    for name, bound in config.objective.constraints.items():
        for end in ("at_least", "at_most"):
            _check_reachable(f"objective.constraints.{name}.{end}", bound.metric, getattr(bound, end))
    Constraints.from_config(asdict(config.objective)).check(
        known, [*computed_baselines(config), *saved_answers(config)]
    )


def _check_reachable(path: str, metric: str, value: float | None) -> None:
    """Raises ConfigError for a bound or target that lies outside what its metric can be, such as 90 for a share."""
    low, high = METRICS[metric].range if metric in METRICS else (-math.inf, math.inf)
    if value is None or low <= value <= high:
        return
    if (low, high) == (0.0, 1.0) and 1 < value <= 100:
        what = f"{metric} is a share between 0 and 1, not percent: did you mean {value / 100:g}?"
    elif math.isinf(high):
        what = f"{metric} is never below {low:g}."
    else:
        what = f"{metric} is between {low:g} and {high:g}."
    raise ConfigError(f"{path}={value:g}: {what}")


def _check_budget(config: SweepConfig) -> None:
    if config.search.time not in (None, "auto"):
        seconds_of(str(config.search.time))
    if config.resources.wait is not None:
        seconds_of(config.resources.wait, "resources.wait")
    known = {name for name in measured(config) if name in METRICS and METRICS[name].better in ("high", "low")}
    for name, value in config.search.budget.target.items():
        if name not in known | {"objective"}:
            raise ConfigError(
                f"search.budget.target.{name}: not a metric that this sweep can aim at."
                f" {did_you_mean(name, known | {'objective'})}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"search.budget.target.{name}={value!r}: expected a number, such as {{{name}: 0.9}}.")
        _check_reachable(f"search.budget.target.{name}", name, value)


def _check_scheduler(config: SweepConfig) -> None:
    for group in ("sampler", "scheduler"):
        part = getattr(config, group)
        library, _, cls = str(part.get("_target_", "")).rpartition(".")
        known = KEYWORDS.get(cls, ()) if library in ("optuna.samplers", "ray.tune.schedulers") else ()
        for name in part if known else ():
            if name not in ("_target_", "keep_best", *known):
                near = next((f"Did you mean '{it}'?" for it in known if it.startswith(name)), did_you_mean(name, known))
                raise ConfigError(f"{group}.{name}: {part['_target_']} takes no '{name}'. {near}")
    scheduler = config.scheduler
    asha = str(scheduler.get("_target_", "")).endswith((".ASHAScheduler", ".AsyncHyperBandScheduler"))
    if asha and config.train.rungs:
        milestones(config.train.rungs, scheduler.get("grace_period"), scheduler.get("reduction_factor"))


def milestones(rungs: Sequence[int], grace: Any, factor: Any) -> list[int]:
    """The rungs at which successive halving decides: ``grace · factor^k``, the last rung excepted.

    Args:
        rungs: optimiser steps, ascending.
        grace, factor: the scheduler's ``grace_period`` and ``reduction_factor``.

    Raises:
        ConfigError: where the scheduler would decide at a step that is no rung: it would compare later scores instead.
    """
    given = (grace, factor)
    numbers = all(isinstance(it, int | float) and not isinstance(it, bool) and it < LARGEST for it in given)
    if not (numbers and grace >= 1 and factor > 1):
        raise ConfigError(
            f"scheduler: grace_period={brief(grace)} and reduction_factor={brief(factor)}: expected numbers, of at"
            " least 1 and above 1."
        )
    decisive, step = [], float(grace)
    while step < rungs[-1] - 1e-6:
        near = [rung for rung in rungs if math.isclose(rung, step, rel_tol=1e-9)]
        if not near:
            raise ConfigError(
                f"train.rungs={list(rungs)}: the scheduler decides at step {step:g} (grace_period={grace:g},"
                f" reduction_factor={factor:g}), and no trial is evaluated at {step:g}. Let the rungs grow by one"
                " factor, such as [12, 24, 48] or [8, 32], or use scheduler=fifo."
            )
        decisive += near
        step *= factor
    return decisive


def seconds_of(text: str, path: str = "search.time") -> float:
    """Seconds of a time such as ``90s``, ``15m`` or ``1h30m``. Raises ConfigError."""
    parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.replace(" ", ""))
    seconds = sum(float(n) * unit for n, unit in zip(parts.groups(), _UNITS.values(), strict=True) if n) if parts else 0
    if not seconds:
        others = {"search.time": ", auto, or null for no limit", "--wait": ""}.get(path, ", or null for no limit")
        raise ConfigError(f"{path}={text}: expected a time such as 90s, 15m, 2h or 1h30m{others}.")
    return seconds


def limit_seconds(time: str | None) -> float:
    """Seconds of a time such as ``search.time``; infinite where it sets no limit, or none yet."""
    return math.inf if time in (None, "auto") else seconds_of(str(time))


def stand_ins(config: SweepConfig) -> SweepConfig:
    """The config with any values in place of those that data and device are still to give, so that it can be checked.

    Raises:
        ConfigError: where the length is named twice.
    """
    train, data = config.train, config.data
    if train.epochs and train.max_steps:
        raise ConfigError(
            f"train.epochs={train.epochs:g} and train.max_steps={train.max_steps} both say how long a trial is."
            " Keep one of them."
        )
    if train.epochs and train.rungs:
        raise ConfigError(
            f"train.rungs={list(train.rungs)} are steps, and with train.epochs={train.epochs:g} their number is known"
            f" once the data are read. Use train.max_steps={train.rungs[-1]}, or leave the rungs out."
        )
    steps = train.max_steps or (train.rungs[-1] if train.rungs else 8)
    train = replace(train, max_steps=steps, rungs=list(train.rungs) or [steps])
    precision = PRECISIONS[0] if config.precision == "auto" else config.precision
    data = replace(data, max_length=data.max_length or 2048)
    return replace(config, precision=precision, train=train, data=data)


def trial_part(config: SweepConfig, trial_id: str) -> TrialConfig:
    """The parts of a trial, taken out of a sweep's config.

    Args:
        config: of the sweep, with the trial's values in it.
        trial_id: such as ``t0003``.
    """
    shared = {item.name: getattr(config, item.name) for item in fields(TrialConfig) if item.name != "trial_id"}
    return TrialConfig(trial_id=trial_id, **shared)
