"""The cache of a device: base models, data sets and their tokens, kept between trials."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from analysis.errors import ConfigError, DataError, HardwareError
from trainer.answers.judge import Judge
from trainer.answers.own_metrics import OwnMetrics, verify
from trainer.class_weights import class_weights
from trainer.config import TrialConfig
from trainer.data.dataset import Dataset, Row, check_test, load_dataset, load_test, rung_subset
from trainer.data.encode import Encoded
from trainer.data.mitigation import counterfactual_copies, row_weights
from trainer.data.schemas import reference_of
from trainer.data.tokenize import Tokens, lost_note, tokens_of
from trainer.evaluation.bias.items import BiasItems, load_bias
from trainer.evaluation.bias.registry import BiasScoring, TaskRows, scorings
from trainer.evaluation.evaluate import Validation
from trainer.evaluation.generate import SPARE, ToAnswer, answers_of
from trainer.evaluation.judging import make_judge
from trainer.evaluation.metric_names import task_kind
from trainer.generation.prompts import prompts_of
from trainer.models.base_model import BaseModel, compute_dtype, load_base
from trainer.models.padding import check_token
from trainer.models.ranks import ALONE, Ranks
from trainer.models.sharding import Needs, first_pass, may_be_sharded, needs, shard, too_large
from trainer.models.tokenizer import loading_arguments, model_folder
from trainer.models.weights import without_weights

_REFERENCES = 2_000  # training rows whose references tell how long answers are
_SHORTEST_ANSWER = 32  # tokens
_LONGEST_ANSWER = 256  # tokens, unless the config says more
_BASES = 4  # base models kept: one at every precision


class DeviceCache:
    """Loads what a trial needs once, and gives the same object to every trial that needs it.

    Args:
        device: where base models stay.
        gpu_share: of a GPU's memory that this process may use; others have the rest.
        ranks: the processes that train trials together, each with a cache and a device of its own.
        sharding: of base models over them: ``engine.sharding``.

    Attributes:
        bias_of_base: ``base_key`` and bias config → item tables of the bias sets, scored without an adapter.
    """

    def __init__(self, device: torch.device, gpu_share: float = 1.0, ranks: Ranks = ALONE, sharding: str = "auto"):
        self.device, self.gpu_share = device, gpu_share
        self.ranks, self.sharding = ranks, sharding
        if device.type == "cuda" and gpu_share < 1:  # past it a tensor is refused, and the trials beside it live on
            torch.cuda.set_per_process_memory_fraction(gpu_share, device)
        self._kept: dict[tuple[str, ...], Any] = {}
        self.bias_of_base: dict[tuple[str, ...], dict[str, dict[str, list[Any]]]] = {}

    def of_one_process(self) -> "DeviceCache":
        """The same, base models not sharded included, for work that this process does without the others."""
        alone = DeviceCache(self.device)
        alone._kept = {
            name: replace(kept, ranks=ALONE) if isinstance(kept, BaseModel) else kept
            for name, kept in self._kept.items()
            if not (isinstance(kept, BaseModel) and kept.sharded)
        }
        return alone

    def dataset(self, trial: TrialConfig) -> Dataset:
        """The rows of the trial's data.

        Raises:
            DataError: for files that cannot be used.
        """
        dataset: Dataset = self._once(("dataset", repr(trial.data)), lambda: load_dataset(trial.data))
        return dataset

    def base_key(self, trial: TrialConfig) -> tuple[str, ...]:
        """What trials must have in common to share a base model: model and revision, precision, task head."""
        head = repr(self.dataset(trial).labels) if trial.task.name == "classification" else ""
        return ("base", repr(trial.model), trial.precision, trial.task.name, head)

    def base(self, trial: TrialConfig) -> BaseModel:
        """The base model at the trial's precision, with its task head. The four that were used last are kept.

        Raises:
            ModelError, HardwareError: see ``load_base``.
        """
        labels = self.dataset(trial).labels
        bases = [key for key in self._kept if key[0] == "base"]
        name = self.base_key(trial)
        if name not in self._kept and len(bases) >= _BASES:
            del self._kept[bases[0]]
        base: BaseModel = self._once(name, lambda: self._loaded(trial, labels))
        self._kept[name] = self._kept.pop(name)  # in the order of their last use
        return base

    def _loaded(self, trial: TrialConfig, labels: tuple[str, ...]) -> BaseModel:
        arguments = trial.model, trial.precision, trial.task.name, labels, self.device
        need = self._needs(trial, labels)
        if not may_be_sharded(self.sharding, trial.precision, self.device, self.ranks):
            return replace(load_base(*arguments), ranks=self.ranks)
        mesh = init_device_mesh(self.device.type, (self.ranks.size,))

        def part() -> BaseModel:
            base = load_base(*arguments, place=torch.device("cpu"))
            fits = need is None or need.fits(self._memory, self.ranks.size, sharded=False)
            if self.sharding == "fsdp" or not fits:
                shard(base.model, self.device, mesh)
                return replace(base, ranks=self.ranks, sharded=True)
            nn.Module.to(base.model, self.device)
            return replace(base, ranks=self.ranks)

        base: BaseModel = self.ranks.in_turn(part)  # so that the host's memory holds one whole model at a time
        if base.sharded:
            first_pass(base.model)
        return base

    def _needs(self, trial: TrialConfig, labels: tuple[str, ...]) -> Needs | None:
        """What the trial needs of a GPU; None on a CPU, and where that cannot be told from the config.

        Raises:
            HardwareError: where it fits no single GPU, and no other has a part.
        """
        if self.device.type != "cuda":
            return None
        where = model_folder(trial.model)
        classes = labels if trial.task.name == "classification" else None
        try:
            model = without_weights(where, classes, loading_arguments(trial.model, where))
            need, nf4 = needs(model, trial), needs(model, replace(trial, precision="nf4"))
        except Exception:  # what is wrong with the model is told where it is loaded
            return None
        if (self.ranks.alone or self.sharding == "ddp") and (
            said := too_large(need, trial.precision, self._memory, nf4)
        ):
            raise HardwareError(said)
        return need

    @property
    def _memory(self) -> float:
        """Bytes of this device that are ours."""
        return self.gpu_share * float(torch.cuda.mem_get_info(self.device)[1])

    def training(self, trial: TrialConfig) -> list[Encoded]:
        """The training rows as tokens, with the copies that ``mitigation`` asks for, and with their weights.

        Raises:
            ConfigError: where prompt and label do not fit.
            DataError: where there is nothing to augment, or rows have no labels to weigh by.
        """
        tokens, mitigation = self.tokens(trial, "train"), trial.mitigation
        by_class = trial.train.class_weight
        if not mitigation.augment and not mitigation.reweight and by_class == "none":
            return tokens.encoded
        name = ("mitigated", repr(mitigation), by_class, repr(trial.data), repr(trial.model), repr(trial.task))
        mitigated: list[Encoded] = self._once(name, lambda: self._mitigated(trial, tokens))
        return mitigated

    def _mitigated(self, trial: TrialConfig, tokens: Tokens) -> list[Encoded]:
        dataset, mitigation, by_class = self.dataset(trial), trial.mitigation, trial.train.class_weight
        copies = counterfactual_copies(dataset.train, mitigation.augment)
        more = self._tokenised(trial, copies, training=True) if copies else Tokens([], [], 0)
        encoded = [*tokens.encoded, *more.encoded]
        if not mitigation.reweight and by_class == "none":
            return encoded
        if by_class != "none" and not dataset.labels:
            raise DataError(
                f"train.class_weight={by_class} with data.schema={dataset.schema}: the rows have no labels to weigh by."
                " Use train.class_weight=none."
            )
        rows = [*tokens.rows, *more.rows]
        weights = row_weights(rows, mitigation.reweight)
        if by_class != "none":
            of_class = class_weights([row.label for row in rows], by_class)
            products = [a * b for a, b in zip(of_class, weights, strict=True)]
            weights = [product * len(rows) / sum(products) for product in products]
        return [replace(row, weight=weight) for row, weight in zip(encoded, weights, strict=True)]

    def validation(self, trial: TrialConfig) -> Validation:
        """The validation rows as tokens, the rung subset and the bias items."""
        tokens = self.tokens(trial, "validation")
        rung = rung_subset(tokens.rows, trial.eval.rung_items, 0)
        dataset = self.dataset(trial)
        bias = self._bias_items(trial, dataset, tokens, "validation")
        answers = self.to_answer(trial, tokens.rows, tokens.encoded, "validation", rung)
        return Validation(
            tokens.rows,
            tokens.encoded,
            dataset.labels,
            rung,
            bias,
            dataset.schema,
            settings=trial.bias,
            to_answer=answers,
        )

    def to_answer(
        self, trial: TrialConfig, rows: list[Row], encoded: list[Encoded], name: str, rung: Sequence[int] = ()
    ) -> ToAnswer:
        """What a trial of such a config is to write answers to; nothing where ``eval.generate`` is false.

        Args:
            trial: its settings of evaluation.
            rows: of a split.
            encoded: the same as tokens; with few-shot examples before them, these are in the prompts.
            name: of the split, and of how it is encoded: what is made for it is kept under it.
            rung: places of the rows that are scored at rungs. Without them all rows are answered.
        """
        settings = trial.eval
        if not settings.answers or trial.task.name == "classification":
            return ToAnswer()
        few: frozenset[int] = frozenset()
        chosen = list(range(len(rows)))
        if rung:
            some = [rung[i] for i in rung_subset([rows[i] for i in rung], settings.generate_items, 0)]
            others = [i for i in chosen if i not in set(some)]
            more = max(0, settings.generate_final_items - len(some))
            drawn = rung_subset([rows[i] for i in others], more, 0) if more and others else []
            chosen = sorted([*some, *(others[i] for i in drawn)])
            few = frozenset(some if settings.answers == "rung" else ())
        key = ("prompts", name, repr(settings), repr(trial.data), repr(trial.model), repr(trial.task))
        return self._once(key, lambda: self._to_answer(trial, rows, encoded, chosen, few))  # type: ignore[no-any-return]

    def _to_answer(
        self, trial: TrialConfig, rows: list[Row], encoded: list[Encoded], chosen: list[int], few: frozenset[int]
    ) -> ToAnswer:
        dataset, base = self.dataset(trial), self.base(trial)
        most = self.max_new_tokens(trial)
        prompts = prompts_of(
            [rows[i] for i in chosen],
            [encoded[i] for i in chosen],
            dataset.labels,
            dataset.schema,
            base.tokenizer,
            trial.task,
            base.window,
            most,
            trial.eval.turns,
        )
        placed = tuple(replace(prompt, row=chosen[prompt.row]) for prompt in prompts)
        own: OwnMetrics = self._once(("own", repr(trial.eval.metrics)), lambda: _own_metrics(trial.eval.metrics))
        return ToAnswer(placed, few, most, own, judge=self.judge(trial))

    def judge(self, trial: TrialConfig) -> Judge | None:
        """The judge that ``eval.judge`` describes; None where there is none."""
        settings = trial.eval.judge
        if not settings.on or not trial.eval.answers:
            return None
        name = ("judge", repr(settings), trial.precision)
        judge: Judge = self._once(name, lambda: make_judge(settings, trial.precision, self.device))
        return judge

    def _judge_note(self, trial: TrialConfig) -> str:
        """How far the judge agrees with people, a sentence; empty without a judge."""
        judge = self.judge(trial)
        return f"The judge, {judge.name}: {judge.calibrated().sentence}." if judge else ""

    def max_new_tokens(self, trial: TrialConfig) -> int:
        """Tokens of an answer, at most: ``eval.max_new_tokens``, or what nearly all training references need.

        Without labels: the 95 % quantile of their tokens and a quarter more, between 32 (so that an untuned model,
        which says more than it is asked, is not cut off) and 256. With labels: the longest label and some more.
        """
        if trial.eval.max_new_tokens is not None:
            return trial.eval.max_new_tokens
        dataset, tokenizer = self.dataset(trial), self.base(trial).tokenizer
        if dataset.labels:
            encoded = self.tokens(trial, "validation").encoded
            return max(len(label) for row in encoded for label in answers_of(row)[1]) + SPARE
        name = ("answer length", repr(trial.data), repr(trial.model))

        def measured() -> int:
            texts = [reference_of(row) for row in dataset.train[:_REFERENCES]]
            lengths = sorted(len(ids) for ids in tokenizer(texts, add_special_tokens=False).input_ids)
            usual = lengths[min(len(lengths) - 1, int(0.95 * len(lengths)))]
            window = self.base(trial).window
            return max(1, min(_LONGEST_ANSWER, window // 2, max(_SHORTEST_ANSWER, usual + usual // 4 + SPARE)))

        return self._once(name, measured)  # type: ignore[no-any-return]

    def _bias_items(self, trial: TrialConfig, dataset: Dataset, tokens: Tokens, split: str) -> BiasItems:
        """What bias is measured on: the items of the sets that exist for the task, and those made of its rows."""
        kind = task_kind(trial.task, dataset.schema)
        own: BiasItems = self._once(("bias", kind, repr(trial.bias)), lambda: load_bias(trial.bias, kind))
        of_rows = {}
        for name, scoring in scorings().items():
            n = scoring.declared.value(bias=trial.bias, data=trial.data)
            if scoring.from_rows is not None and n and kind in scoring.declared.tasks:
                of_rows[name] = self._items_from_rows(scoring, trial, dataset, tokens, split, n)
        return BiasItems({**own.by_set, **of_rows})

    def _items_from_rows(
        self, scoring: BiasScoring, trial: TrialConfig, dataset: Dataset, tokens: Tokens, split: str, n: int
    ) -> list[Any]:
        def made() -> list[Any]:
            assert scoring.from_rows is not None
            tokenizer, length = self.base(trial).tokenizer, trial.data.max_length
            rows = TaskRows(tokens.rows, tokens.encoded, dataset.labels, tokenizer, trial.task, length)
            return scoring.from_rows(rows, n)

        name = ("bias of rows", scoring.name, split, str(n), repr(trial.data), repr(trial.model), repr(trial.task))
        items: list[Any] = self._once(name, made)
        return items

    def test(self, trial: TrialConfig) -> Validation:
        """The test rows as tokens, and the bias sets: for a final scoring, never for a sweep.

        Raises:
            DataError: where there are none, or they hold a label that no training row has.
        """
        rows: list[Row] = self._once(("test", repr(trial.data)), lambda: load_test(trial.data))
        check_test(rows, self.dataset(trial).labels)
        name = ("tokens", "test", repr(trial.data), repr(trial.model), repr(trial.task))
        tokens: Tokens = self._once(name, lambda: self._tokenised(trial, rows, training=False))
        dataset = self.dataset(trial)
        bias = self._bias_items(trial, dataset, tokens, "test")
        answers = self.to_answer(trial, tokens.rows, tokens.encoded, "test")
        return Validation(
            tokens.rows, tokens.encoded, dataset.labels, [], bias, dataset.schema, "test", trial.bias, answers
        )

    def facts(self, trial: TrialConfig) -> dict[str, Any]:
        """What ``sweep.yaml`` records of the data: rows, labels, tokens, and rows that were left out."""
        dataset = self.dataset(trial)
        splits = {split: self.tokens(trial, split) for split in ("train", "validation")}
        left_out = (*dataset.skipped, *(place for tokens in splits.values() for place in tokens.skipped))
        counts = {split: sum(len(row.tokens) for row in tokens.encoded) for split, tokens in splits.items()}
        return replace(dataset, skipped=left_out).facts() | {
            "tokens": counts,
            "lost": self.lost(trial),
            "model_revision": getattr(self.base(trial).model.config, "_commit_hash", None),
            "dtype": str(compute_dtype(trial.precision, self.device)).removeprefix("torch."),
            "pad_token_id": self.base(trial).pad_token,
            "model_notes": list(self.base(trial).notes),
            "judge": self._judge_note(trial),
            "max_new_tokens": self.max_new_tokens(trial) if trial.eval.answers else None,
        }

    def lost(self, trial: TrialConfig) -> str:
        """A sentence on the loss-bearing tokens that ``data.max_length`` cuts; empty where it cuts none."""
        splits = {split: self.tokens(trial, split) for split in ("train", "validation")}
        counts = {n: {"rows": it.lost, "of": len(it.encoded), "needed": it.needed} for n, it in splits.items()}
        return lost_note(trial.data.max_length, self.base(trial).window, counts)

    def tokens(self, trial: TrialConfig, split: str) -> Tokens:
        """The rows of a split as tokens, without copies or weights.

        Args:
            trial: its data, model and task.
            split: ``train`` or ``validation``.
        """
        dataset = self.dataset(trial)
        training = split == "train"
        name = ("tokens", split, repr(trial.data), repr(trial.model), repr(trial.task))
        rows = dataset.train if training else dataset.validation
        tokens: Tokens = self._once(name, lambda: self._tokenised(trial, rows, training))
        return tokens

    def _tokenised(self, trial: TrialConfig, rows: list[Row], training: bool) -> Tokens:
        dataset, base = self.dataset(trial), self.base(trial)
        if trial.data.max_length > base.window:
            raise ConfigError(
                f"data.max_length={trial.data.max_length} is longer than the model's window of {base.window} tokens."
                f" Use data.max_length={base.window}, or less."
            )
        tokens = tokens_of(
            rows,
            dataset.labels,
            dataset.schema,
            base.tokenizer,
            trial.task,
            trial.data.max_length,
            training=training,
            skip=trial.data.on_error == "skip",
            stride=trial.eval.stride,
        )
        largest = max((max(row.tokens, default=0) for row in tokens.encoded), default=0)
        check_token(largest, base.tokenizer, base.model)
        return tokens

    def _once(self, name: tuple[str, ...], make: Any) -> Any:
        """What is kept under a name; made the first time."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]


def _own_metrics(entries: Mapping[str, Any]) -> OwnMetrics:
    """A config's own metrics, once their files are known to be those that the sweep was composed with.

    Raises:
        ConfigError: for a file that is not on this machine, or differs.
    """
    verify(entries)
    return OwnMetrics(entries)
