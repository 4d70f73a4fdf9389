"""Which metrics a trial yields, by its task and by what is switched on: read from the table in ``analysis/metrics.py``.

Without torch, so that a config is checked in no time.
"""

from analysis.metric_types import LABELLED
from analysis.metrics import METRICS
from trainer.config import BiasConfig, DataConfig, EvalConfig, TaskConfig
from trainer.data import schemas

# metric → the key of eval without which there is none
_NEEDS = {"generate.regex": "regex", "generate.json_schema": "json_schema", "generate.code": "code_tests"}
QUALITY = tuple(name for name, metric in METRICS.items() if metric.tasks == LABELLED and not metric.switch)


def task_kind(task: TaskConfig, schema: str | None) -> str:
    """What the metric table calls a task: ``classification``, or the schema of the rows that a decoder continues.

    Args:
        schema: of the rows; None counts as rows with labels.
    """
    return "classification" if task.name == "classification" else schema or schemas.LABELLED


def metric_names(task: TaskConfig, bias: BiasConfig, data: DataConfig, answers: EvalConfig) -> tuple[str, ...]:
    """The metrics that every rung of a trial yields; those of the swap only where rows have something to swap.

    Of what the model writes: those that the config can give. Which of them the rows can give is told by ``absent``.
    """
    kind = task_kind(task, data.schema)
    sections = {"bias": bias, "data": data}

    def on(switch: str) -> bool:
        if switch == "eval.generate":
            return answers.answers == "rung"
        if switch == "eval.judge":
            return answers.answers == "rung" and answers.judge.on and answers.judge.at == "rung"
        section, _, key = switch.partition(".")
        return not switch or bool(getattr(sections[section], key))

    def ours(name: str) -> bool:
        return name.split(".")[1] in answers.metrics

    def given(name: str) -> bool:
        return name not in _NEEDS or bool(getattr(answers, _NEEDS[name]))

    return tuple(
        name
        for name, metric in METRICS.items()
        if kind in metric.tasks and on(metric.switch) and (not metric.own or ours(name)) and given(name)
    )
