"""``search.transfer_from``: what a sweep over another model found out, as points to try here.

Each trial of the earlier sweep is placed in this sweep's space: its learning rate is converted from its alpha rule and
rank to this space's (``analysis/effective_rate.py``), and from its model's width to this one's
(``sweeps/space/width_rule.py``). The best few are tried first. The others follow in their order, ever more seldom: a
trial that follows n others is such a point with probability 3 / n. So what is known of another model fades as what is
known of this one grows, and the sampler is told of trials of this model alone.

What was read is kept in ``study/transfer.jsonl``: a resume needs no old folder, and hands out what it would have.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from analysis import fast_yaml
from analysis.effective_rate import effective_rate
from analysis.errors import ConfigError, FolderError
from analysis.folder import State, SweepFolder, append_line, read_lines
from analysis.objective import Objective
from sweeps.search.warm_start import configurations_of, over_seeds, rungs_of, state_over_seeds
from sweeps.space.base_model import base_model
from sweeps.space.dimensions import Scalar, Space, flatten
from sweeps.space.known_points import BaseModel, RatePoint, placed
from sweeps.space.width_rule import rate_factor
from trainer.config import LoraSettings, ModelConfig

FIRST = 3  # points that are tried before everything else


@dataclass(frozen=True)
class Transferred:
    """A trial of a sweep over another model, as a point of this sweep's space.

    Attributes:
        source: the sweep's folder and the trial's id, such as ``runs/small/t0003``.
        values: dotted path → value.
        rate: its learning rate, converted to this model's width and to alpha 32.
        rank: of its adapter.
        objective: this sweep's, on what was measured there; of the best rung.
        completed: else it was stopped early.
    """

    source: str
    values: dict[str, Scalar]
    rate: float
    rank: int
    objective: float
    completed: bool


def transferred(
    runs: Sequence[str],
    space: Space,
    model: BaseModel,
    objective: Objective,
    settings: Callable[[Mapping[str, Scalar]], LoraSettings],
) -> tuple[list[Transferred], list[str]]:
    """The trials of earlier sweeps that can be placed, the best first, and a sentence on each sweep.

    Args:
        runs: sweep folders.
        space: of this sweep.
        model: of this sweep.
        objective: of this sweep.
        settings: values of the space's keys → the adapter's settings of the trial that has them.

    Raises:
        FolderError: where a folder is no sweep, or a trial's config in it lacks a value.
        ConfigError: where nothing of a sweep can be placed.
    """
    if runs and "optim.lr" not in space:
        raise ConfigError(
            "search.transfer_from converts learning rates, and optim.lr is not in the space. Search it, such as"
            " 'optim.lr=tag(log,interval(1e-4,5e-3))', or use search.warm_start."
        )
    every: list[Transferred] = []
    notes = []
    for given in runs:
        run = given.rstrip("/")
        folder = SweepFolder.open(run)
        before = _model(folder)
        factor = rate_factor(model.hidden_size, model.model_type, before.hidden_size)
        found = list(_trials(folder, run, factor, space, objective, settings))
        if not found:
            raise ConfigError(
                f"search.transfer_from: no trial of {run} can be placed in this sweep's space: none has ended with this"
                " objective's metrics and a learning rate that the space holds. Change the space, or do without."
            )
        known = model.hidden_size and before.hidden_size
        why = (
            f"for hidden size {before.hidden_size} → {model.hidden_size}" if known else "as a hidden size is not known"
        )
        notes.append(f"Transferred from {run}: {len(found)} trials, their learning rates times {factor:.3g} {why}.")
        every += found
    return sorted(every, key=lambda it: (not it.completed, -it.objective)), notes


def _model(folder: SweepFolder) -> BaseModel:
    config = fast_yaml.load(folder.sweep_file.read_text()).get("config") or {}
    names = {item.name for item in fields(ModelConfig)}
    given = {name: value for name, value in (config.get("model") or {}).items() if name in names}
    return base_model(ModelConfig(**given))


def _trials(
    folder: SweepFolder,
    run: str,
    factor: float,
    space: Space,
    objective: Objective,
    settings: Callable[[Mapping[str, Scalar]], LoraSettings],
) -> Iterator[Transferred]:
    for trial, *seeds in configurations_of(folder):
        state = state_over_seeds(trial, seeds)
        if state not in (State.COMPLETED, State.STOPPED_EARLY) or not trial.config_file.exists():
            continue
        then = dict(flatten(fast_yaml.load(trial.config_file.read_text())))
        scores = [value for value in rungs_of(trial, objective)[0].values() if value is not None]
        if not scores:
            continue
        mean = over_seeds([trial, *seeds], objective)[0] if seeds and state is State.COMPLETED else None
        score = max(scores) if mean is None else mean
        try:
            rank = int(then["lora.rank"])
            rate = effective_rate(then["optim.lr"], then["lora.alpha_rule"], then["lora.alpha_value"], rank) * factor
        except (KeyError, TypeError, ValueError) as error:
            raise FolderError(
                f"{trial.config_file}: not a LoRA trial's config: {error} is missing or no value of its kind. Leave"
                f" {run} out of search.transfer_from."
            ) from None
        others = {path: value for path, value in then.items() if path in space}
        values = placed([RatePoint(rate, rank, others)], space, settings)
        if values:
            completed = state is State.COMPLETED
            yield Transferred(f"{run}/{trial.trial_id}", values[0], rate, rank, score, completed)


def to_transfer(folder: SweepFolder, runs: Sequence[str]) -> tuple[list[Transferred], list[str]]:
    """What the sweep's folder holds already, and the folders that it holds nothing of."""
    try:
        kept = [Transferred(**line) for line in read_lines(folder.transfer_file)]
    except TypeError as error:
        raise FolderError(
            f"{folder.transfer_file}: a line is not what a sweep writes there ({error}). Remove the file: what it held"
            " is read again from the earlier sweeps."
        ) from None
    known = {it.source.rsplit("/", 1)[0] for it in kept}
    return kept, [run for run in runs if run.rstrip("/") not in known]


def keep(folder: SweepFolder, found: Sequence[Transferred]) -> None:
    """Write down what was read of earlier sweeps."""
    for it in found:
        append_line(folder.transfer_file, asdict(it))


def distinct(found: Sequence[Transferred]) -> list[dict[str, Scalar]]:
    """Their points, each once, the best first."""
    points: list[dict[str, Scalar]] = []
    for it in sorted(found, key=lambda it: (not it.completed, -it.objective)):
        if it.values not in points:
            points.append(dict(it.values))
    return points


def takes_prior(seed: int, number: int) -> bool:
    """Whether the trial of this number, which follows as many others, is a point of the earlier sweep."""
    return random.Random(f"{seed} {number}").random() < FIRST / max(number, 1)
