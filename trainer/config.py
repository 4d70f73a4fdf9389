"""The typed configuration of one trial: every key, its default, unit and range.

``conf/`` fills these classes through Hydra; ``sweeps/config.py`` adds what belongs to a whole sweep. The ranges stand
in each field's metadata, so that a value from a YAML file, an override or a search space meets the same check
(``check_value``) before anything is loaded.
"""

import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from analysis.bias_sets import BIAS_SETS
from analysis.errors import ConfigError, did_you_mean

LARGEST = 2**63 - 1  # of a whole number: what other programs hold in 64 bits
_BRIEF = 120  # characters of a value in a message
PRECISIONS = ("fp32", "bf16", "int8", "nf4")


def key(
    default: Any = MISSING,
    *,
    choices: tuple[Any, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    factory: Any = MISSING,
) -> Any:
    """A config field with its range.

    Args:
        default: of the field.
        choices: its only values.
        low, high: bounds of a number, inclusive.
        above: lower bound, exclusive.
        factory: makes the default, in its place.
    """
    metadata = {"choices": choices, "low": low, "high": high, "above": above}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelConfig:
    """The base model."""

    source: str = key("package", choices=("package", "local", "hub"))  # where the weights come from
    package: str | None = None  # source=package: a name in trainer/assets/packages.py
    path: str | None = None  # source=local: a folder with config.json, tokenizer and safetensors or GGUF weights
    name: str | None = None  # source=hub: owner/name
    revision: str | None = None  # source=hub: a commit hash or tag; pinned in sweep.yaml


SOURCES = ("newsgroups", "csv", "tsv", "jsonl", "parquet", "arrow", "folder", "hub", "package")
SCHEMAS = ("label", "completion", "chat", "text")  # what a row is: see trainer/data/schemas.py


@dataclass
class SplitConfig:
    """Splits made from ``data.train``; nothing is made where both shares are 0."""

    validation: float = key(0.0, low=0.0, high=0.9)  # share of the rows; 0: data.validation names them
    test: float = key(0.0, low=0.0, high=0.9)  # share of the rows, kept away from the sweep
    seed: int = key(0, low=0)  # another seed makes another split; not the sweep's seed, which may change
    group: str | None = None  # column: rows of one value stay in one split; null: stratified by label


@dataclass
class DataConfig:
    """The rows, and how they are read."""

    source: str = key("newsgroups", choices=SOURCES)
    train: str | None = None  # file; source=folder: a folder; source=hub: a split's name
    validation: str | None = None  # the same
    test: str | None = None  # the same; never read by a sweep, only by `check` and the final scoring
    name: str | None = None  # source=hub: owner/name, or a folder or file that `datasets` loads
    subset: str | None = None  # source=hub: configuration of the data set
    revision: str | None = None  # source=hub: a commit hash or tag
    package: str | None = None  # source=package: a name in trainer/assets/packages.py; the files are in it
    schema: str | None = key(None, choices=(*SCHEMAS, None))  # null: the one that the columns fit
    text: str = "text"  # column, of schemas label and text
    label: str = "label"  # column, of schema label
    prompt: str = "prompt"  # column, of schema completion
    completion: str = "completion"  # column, of schema completion
    messages: str = "messages"  # column, of schema chat: a list of {role, content}
    tools: str | None = "tools"  # column, of schema chat: schemas of functions; "tools" need not be there; null: none
    template: str | None = None  # Jinja over a row's columns, in place of the text or prompt column
    answer_template: str | None = None  # the same, in place of the label or completion column
    group: str | None = None  # column with a group (such as gender), kept with every item
    extra_columns: list[str] = field(default_factory=list)  # kept with rows for your own metrics (eval.metrics)
    on_error: str = key("fail", choices=("fail", "skip"))  # a row that cannot be used: stop, or leave it out and say so
    split: SplitConfig = field(default_factory=SplitConfig)
    max_length: int = key(128, low=0)  # tokens a row, at least 8; 0: from the data; see trainer/data/tokenize.py
    allow_overlap: bool = False  # validation rows in the training rows, test rows in either: an error, unless allowed
    topics: dict[str, str] = field(default_factory=dict)  # newsgroups: group name → label word
    train_rows: int = key(0, low=0)  # newsgroups: rows a topic; 0 = all
    validation_rows: int = key(0, low=0)  # newsgroups: rows a topic; 0 = all
    test_rows: int = key(0, low=0)  # newsgroups: rows a topic, beside those for validation; 0 = none


@dataclass
class TaskConfig:
    """What the model learns to do."""

    name: str = key("completion", choices=("completion", "classification"))
    prompt: str = "{text}\nLabel:"  # completion: what stands before the label; {text} is the row's text
    normalization: str = key("sum", choices=("sum", "token"))  # of label log-likelihoods: summed, or mean per token


INITS = ("default", "orthogonal")


@dataclass
class LoraSettings:
    """The adapter."""

    rank: int = key(8, low=1, high=1024)
    alpha_rule: str = key("ratio", choices=("fixed", "ratio", "sqrt"))
    alpha_value: float = key(2.0, above=0.0)
    dropout: float = key(0.0, low=0.0, high=0.95)  # probability
    targets: str = "all_linear"  # attention, all_linear, or module names joined by '+'
    init: str = key("default", choices=INITS)  # start values of A and B: trainer/models/lora.py
    # only with engine=hf:
    dora: bool = False  # weight-decomposed LoRA (Liu et al. 2024, arXiv 2402.09353)
    bias: str = key("none", choices=("none", "all", "lora_only"))  # which biases of the base model are trained
    modules_to_save: list[str] = field(default_factory=list)  # modules trained in full, such as [embed_tokens]


_SHORTEST = 8  # tokens of a row, at least
HEAD_NAMES = frozenset({"classifier", "score"})  # what models call the head of a classification task
KERNELS = ("auto", "loop", "bmm", "grouped")
SHARDINGS = ("auto", "ddp", "fsdp")


@dataclass
class EngineConfig:
    """How trials are trained. Nothing here changes a result, but for rounding."""

    name: str = key("packed", choices=("packed", "hf"))
    kernel: str = key("auto", choices=KERNELS)  # packed: of the LoRA products; auto chooses by shape
    cut_by_length: bool = True  # packed: short rows get passes of their own where that saves padding
    # packed: what one more pass costs, in tokens that take as long; null: 128 on a CPU, on a GPU measured
    pass_cost: float | None = key(None, above=0.0)
    activation_checkpointing: bool = False  # recompute activations in the backward pass: less memory, more time
    sharding: str = key("auto", choices=SHARDINGS)  # hf over several devices: the base whole on each, or in parts


@dataclass
class OptimConfig:
    """AdamW and its schedule."""

    lr: float = key(1e-3, above=0.0, high=1e4)  # peak learning rate
    head_lr: float | None = key(None, above=0.0, high=1e4)  # peak learning rate of a task head; null: lr · head_ratio
    head_ratio: float = key(1.0, above=0.0, high=1e4)  # the head's peak learning rate over lr, without head_lr
    b_ratio: float = key(1.0, above=0.0, high=1e4)  # B's peak learning rate over lr: LoRA+ (arXiv 2402.12354)
    weight_decay: float = key(0.0, low=0.0, high=10.0)
    schedule: str = key("linear", choices=("linear", "cosine", "constant"))
    warmup: float = key(0.1, low=0.0, high=1.0)  # share of max_steps
    beta1: float = key(0.9, low=0.0, high=0.9999)
    beta2: float = key(0.999, low=0.0, high=0.999999)


CLASS_WEIGHTS = ("none", "balanced", "effective")


@dataclass
class TrainConfig:
    """Steps, batches and rungs."""

    epochs: float | None = key(None, above=0.0)  # passes over the training rows; null: max_steps says, or the data
    max_steps: int = key(48, low=0)  # optimiser steps; 0: from epochs, or from the data (sweeps/checks/length.py)
    batch_size: int = key(16, low=1)  # rows per optimiser step
    accumulation: int = key(1, low=1)  # micro-steps per optimiser step; divides batch_size
    # optimiser steps at which a trial is evaluated, ascending; []: from max_steps
    rungs: list[int] = field(default_factory=lambda: [12, 24, 48])
    patience: int | None = key(None, low=1)  # rungs without a better objective after which a trial is done
    clip: float = key(1.0, above=0.0)  # gradient norm
    class_weight: str = key("none", choices=CLASS_WEIGHTS)  # of a row in the loss, by its label


JUDGE_PROMPT = (
    "Two answers to the same request follow. Which one is better: more correct, more helpful, to the point?\n\n"
    "Request:\n{prompt}\n\nAnswer 1:\n{first}\n\nAnswer 2:\n{second}\n\n"
    "Reply with one word: 1, 2, or tie."
)


@dataclass
class JudgeConfig:
    """A model that compares answers: ``generate.judge``. It is asked where ``server`` or ``path`` is given."""

    server: str | None = None  # address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1
    model: str | None = None  # what the server calls the model
    key_variable: str | None = None  # environment variable with the server's key
    path: str | None = None  # folder of a model that is loaded beside the base model, in place of a server
    against: str = key("reference", choices=("reference", "zero_shot"))  # what an answer is compared with
    at: str = key("final", choices=("final", "rung"))  # completed trials and baselines only, or rungs too
    prompt: str = JUDGE_PROMPT  # with {prompt}, {first} and {second}
    timeout: float = key(60.0, above=0.0)  # seconds for a reply
    calibration: str | None = None  # JSON lines with people's verdicts: prompt, first, second, better

    @property
    def on(self) -> bool:
        """Whether there is a judge."""
        return bool(self.server or self.path)


@dataclass
class EvalConfig:
    """How a trial is scored."""

    rung_items: int = key(96, low=2)  # validation rows scored at rungs: fixed, stratified by label
    batch_size: int = key(64, low=1)  # rows a scoring batch
    stride: int | None = key(None, low=1)  # data.schema=text: tokens that a window scores; null: all but its first
    # when the model writes answers: at rungs and at the end, or at the end; auto: at rungs where the objective needs it
    generate: bool | str = key("auto", choices=("auto", "rung", "final", True, False))
    generate_items: int = key(48, low=2)  # validation rows that are answered at rungs, at most: fixed
    generate_final_items: int = key(256, low=2)  # validation rows that a completed trial answers, at most
    max_new_tokens: int | None = key(None, low=1)  # of an answer; null: by the references, 32 to 256
    stop: list[str] = field(default_factory=list)  # texts at which an answer ends; they are left out of it
    temperature: float = key(0.0, low=0.0, high=10.0)  # 0: greedy; else drawn, by the trial's seed
    top_p: float = key(1.0, above=0.0, high=1.0)  # drawn from the likeliest tokens that are so likely together
    turns: str = key("last", choices=("last", "every"))  # chats: the assistant's turns that are answered
    references: str = key("auto", choices=("auto", "short", "long"))  # which default objective; auto: by their length
    number_tolerance: float = key(0.0, low=0.0, high=1.0)  # generate.number: how far off, as a share of the reference
    regex: str | None = None  # generate.regex: its first group is what counts, in answer and reference
    json_schema: str | None = None  # generate.json_schema: file
    choices: list[str] = field(default_factory=list)  # generate.choice: letters of the options; []: A to J
    run_code: bool = False  # generate.code: run what the model writes, in a process of its own
    code_tests: str | None = None  # generate.code: column with the asserts of a row
    metrics: dict[str, Any] = field(default_factory=dict)  # your own: name → module.function, or its settings
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    @property
    def answers(self) -> str:
        """When answers are written: ``rung`` (and at the end), ``final``, or "" for never."""
        return "final" if self.generate is True else str(self.generate or "").replace("auto", "")


_Class = TypeVar("_Class", bound=type)


def _with_a_key_for_each_bias_set(cls: _Class) -> _Class:
    """Give a class whose fields are still to be collected one more for each bias set that has none: its items."""
    for bias_set in BIAS_SETS.values():
        section, _, name = bias_set.path.partition(".")
        if section == "bias" and name not in cls.__annotations__:
            cls.__annotations__[name] = int
            setattr(cls, name, key(0, low=0))
    return cls


@dataclass
@_with_a_key_for_each_bias_set
class BiasConfig:
    """What bias is measured on. A set of ``analysis/bias_sets.py`` that is not here gets a key of its own: items, 0."""

    name: str = key("fast", choices=("fast", "full", "none"))
    crows_pairs: int = key(100, low=0)  # sentence pairs, fixed and stratified by category; 0 = not measured
    stereoset: int = key(60, low=0)  # contexts, fixed and stratified by category; 0 = not measured
    bbq: int = key(0, low=0)  # questions, fixed and stratified by category, context and polarity; 0 = not measured
    swap: int = key(40, low=0)  # validation rows whose names and group terms are swapped, at most; 0 = not measured
    group_rows: int = key(10, low=1)  # rows that a rate of a group of data.group is over, at least; else it is left out
    pairs_file: str | None = None  # CSV with sentence pairs of your own: columns more, less, and maybe category, id


@dataclass
class MitigationConfig:
    """What is done to the training rows against bias; the evidence for it is mixed (conf/mitigation/default.yaml)."""

    augment: float = key(0.0, low=0.0, high=1.0)  # share of the rows with something to swap that get a swapped copy
    reweight: float = key(0.0, low=0.0, high=4.0)  # a row weighs 1 / P(label, group)^reweight in the loss


@dataclass
class FewShotConfig:
    """The baseline few_shot: the same examples before every item."""

    k: int = key(4, low=1, high=1000)  # examples in the prompt
    seed: int = key(0, low=0)  # which training rows; stratified by label


@dataclass
class RetrievalConfig:
    """The baseline retrieval: the nearest training rows before each item; a vote of theirs in classification."""

    k: int = key(4, low=1, high=1000)  # neighbours
    neighbours: str = key("tfidf", choices=("tfidf", "hidden", "minilm"))  # what nearness is measured on


@dataclass
class TrialConfig:
    """One trial: everything that decides its result."""

    trial_id: str = ""
    seed: int = key(0, low=0)  # data order, LoRA and head initialisation, dropout
    precision: str = key("fp32", choices=PRECISIONS)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mitigation: MitigationConfig = field(default_factory=MitigationConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    bias: BiasConfig = field(default_factory=BiasConfig)


@dataclass(frozen=True)
class Baseline:
    """Something to compare trials with (``trainer/baselines.py``).

    Attributes:
        kind: majority, linear, frozen, zero_shot, few_shot, retrieval, or answers.
        trial: model, precision, data, task and scoring; its ``trial_id`` is the row's name.
        few_shot: settings of few_shot.
        retrieval: settings of retrieval.
        answers: file of what another system wrote; of kind answers.
    """

    kind: str
    trial: TrialConfig
    few_shot: FewShotConfig = field(default_factory=FewShotConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    answers: str = ""

    @property
    def name(self) -> str:
        """The row's name in the leaderboard, such as ``zero_shot`` or ``zero_shot@nf4``."""
        return self.trial.trial_id


def check_value(path: str, value: Any, metadata: Any, where: str = "") -> None:
    """Raises ConfigError unless a value is in the range that a field's metadata gives.

    Args:
        path: dotted config path, for the message.
        value: of the key.
        metadata: of a dataclass field made by ``key``.
        where: file, override or space entry that the value came from, for the message.
    """
    came = f" ({where})" if where else ""
    choices = metadata.get("choices")
    if choices is not None and value not in choices:
        hint = did_you_mean(brief(value).strip("'"), [str(c) for c in choices])
        raise ConfigError(f"{path}={brief(value)} is not one of {', '.join(map(str, choices))}. {hint}{came}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    low, high, above = metadata.get("low"), metadata.get("high"), metadata.get("above")
    wrong = (low is not None and value < low) or (high is not None and value > high)
    wrong = wrong or (above is not None and value <= above)
    wrong = wrong or abs(value) > LARGEST if isinstance(value, int) else wrong or not math.isfinite(value)
    if wrong:
        floor = f"at least {low:g}" if low is not None else f"greater than {above:g}" if above is not None else ""
        ceiling = f"at most {high:g}" if high is not None else ""
        expected = " and ".join(part for part in (floor, ceiling) if part) or f"a finite number of at most {LARGEST:g}"
        raise ConfigError(f"{path}={brief(value)} is out of range: expected {expected}.{came}")


def brief(value: Any) -> str:
    """A value for a message, its middle left out where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of more digits than Python writes
        return "a number of thousands of digits" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= _BRIEF else f"{text[: _BRIEF - 21]}…{text[-20:]}"


def check_rungs(rungs: Sequence[int], where: str = "") -> None:
    """Raises ConfigError unless rungs are ascending optimiser steps; an empty list is none."""
    if rungs and (sorted(set(rungs)) != list(rungs) or rungs[0] < 1):
        came = f" ({where})" if where else ""
        raise ConfigError(
            f"train.rungs={brief(list(rungs))}: expected ascending optimiser steps, such as [12, 24, 48].{came}"
        )


def check_ranges(config: Any, prefix: str = "") -> None:
    """``check_value`` for every field of a config dataclass and of those in it.

    Args:
        config: the dataclass.
        prefix: put before each path in messages.

    Raises:
        ConfigError: at the first value out of range.
    """
    for item in fields(config):
        value, path = getattr(config, item.name), f"{prefix}{item.name}"
        if is_dataclass(value):
            check_ranges(value, f"{path}.")
        elif value is not None:
            check_value(path, value, item.metadata)


def check_trial(trial: TrialConfig) -> None:
    """Check all ranges of a trial, and what only several keys together can get wrong.

    Raises:
        ConfigError: at the first fault.
    """
    check_ranges(trial)
    train, task = trial.train, trial.task
    if trial.data.max_length < _SHORTEST:
        raise ConfigError(
            f"data.max_length={trial.data.max_length}: expected at least {_SHORTEST} tokens a row, or 0, which a sweep"
            " replaces by what the data need. Give a number here."
        )
    if not train.max_steps:
        raise ConfigError(
            "train.max_steps=0 is replaced by what the data want once they are read. Give a number here, such as"
            " train.max_steps=200."
        )
    if train.batch_size % train.accumulation:
        raise ConfigError(
            f"train.accumulation={train.accumulation} does not divide train.batch_size={train.batch_size}."
            " batch_size counts the rows of a whole optimiser step: choose an accumulation that divides it."
        )
    if trial.eval.stride is not None and trial.eval.stride >= trial.data.max_length:
        raise ConfigError(
            f"eval.stride={trial.eval.stride} is not below data.max_length={trial.data.max_length}: a window needs a"
            " token of context. Use a smaller stride, such as half of data.max_length."
        )
    if not train.rungs:
        raise ConfigError("train.rungs=[]: expected ascending optimiser steps, such as [12, 24, 48].")
    check_rungs(train.rungs)
    if train.rungs[-1] != train.max_steps:
        raise ConfigError(
            f"train.rungs={list(train.rungs)} must end at train.max_steps={train.max_steps}:"
            " a trial is evaluated after its last step. Change one of the two."
        )
    if task.name == "completion" and task.prompt.count("{text}") != 1:
        raise ConfigError(
            f"task.prompt={task.prompt!r}: expected the placeholder {{text}} exactly once, before the label."
        )
    if task.name == "completion" and task.prompt != task.prompt.rstrip():
        raise ConfigError(
            f"task.prompt={task.prompt!r} ends in white space, which most tokenizers join to the next word."
            " Remove it: a space is put before the label."
        )
    check_needs(trial)


def check_needs(trial: TrialConfig) -> None:
    """What a head's learning rate, weights of rows and start values need of other keys. Raises ConfigError."""
    optim, lora, schema = trial.optim, trial.lora, trial.data.schema
    if trial.task.name == "completion" and (optim.head_lr is not None or optim.head_ratio != 1.0):
        given = f"head_ratio={optim.head_ratio:g}" if optim.head_lr is None else f"head_lr={optim.head_lr:g}"
        raise ConfigError(
            f"optim.{given} with task=completion, which trains no head. Leave it out, or use task=classification."
        )
    if trial.train.class_weight != "none" and schema not in (None, "label"):
        raise ConfigError(
            f"train.class_weight={trial.train.class_weight} with data.schema={schema}: the rows have no labels to weigh"
            " by. Use train.class_weight=none, or data.schema=label."
        )
    if trial.mitigation.reweight and schema == "text":
        raise ConfigError(
            f"mitigation.reweight={trial.mitigation.reweight:g} with data.schema=text: texts are trained on one after"
            " the other in windows, so that a row has no weight of its own. Leave it at 0."
        )
    if trial.mitigation.reweight and schema not in (None, "label") and not trial.data.group:
        raise ConfigError(
            f"mitigation.reweight={trial.mitigation.reweight:g} with data.schema={schema}: the rows have neither labels"
            " nor groups to weigh by. Give data.group, or leave it at 0."
        )
    if lora.init == "orthogonal" and lora.rank % 2:
        raise ConfigError(
            f"lora.init=orthogonal with lora.rank={lora.rank}: it gives A and B one half of an orthogonal basis each."
            " Use an even rank, or lora.init=default."
        )


def pack_refusal(lora: LoraSettings) -> str:
    """Why a pack cannot hold such an adapter, naming the option and the way out; empty where it can."""
    options = []
    if lora.dora:
        options.append("lora.dora=true")
    if lora.bias != "none":
        options.append(f"lora.bias={lora.bias}")
    others = [name for name in lora.modules_to_save if name not in HEAD_NAMES]
    if others:
        options.append(f"lora.modules_to_save=[{','.join(others)}]")
    if not options:
        return ""
    return (
        f"engine=packed cannot train {' and '.join(options)}: the trials of a pack share one frozen base model."
        " Use engine=hf for it, or leave the option out."
    )


def sharding_refusal(precision: str, lora: LoraSettings) -> str:
    """Why such a trial cannot be trained over a sharded base model, and what to do, in a sentence; "" where it can."""
    if precision in ("int8", "nf4"):
        return (
            f"engine.sharding=fsdp with precision={precision}: the sharded passes of bitsandbytes' weights are wrong"
            " (on a CPU from the second one on, without an error; on GPUs it was not measured). Use precision=bf16, or"
            " engine.sharding=ddp, where each GPU holds the whole quantised model."
        )
    options = [f"lora.bias={lora.bias}"] if lora.bias != "none" else []
    options += ["lora.dora=true"] if lora.dora else []
    options += ["lora.modules_to_save"] if lora.modules_to_save else []
    if not options:
        return ""
    return (
        f"engine.sharding=fsdp with {' and '.join(options)}: it needs weights of the base model that are sharded there."
        " Use engine.sharding=ddp, or leave the option out."
    )
