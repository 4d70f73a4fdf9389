"""What a device keeps between trials: base models, data sets and their tokens."""

from dataclasses import replace
from typing import Any

import torch

from analysis.errors import ConfigError
from trainer.bias_items import BiasItems, load_bias
from trainer.config import TrialConfig
from trainer.counterfactual import find_swaps
from trainer.data import Dataset, load_dataset, rung_subset
from trainer.encode import Encoded
from trainer.evaluate import Validation
from trainer.models import BaseModel, load_base
from trainer.tokens import Tokens, tokens_of

_BASES = 4  # one model at every precision


class Materials:
    """Loads what a trial needs once and hands out the same object afterwards.

    Args:
        device: where base models stay.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._kept: dict[tuple[str, ...], Any] = {}

    def dataset(self, trial: TrialConfig) -> Dataset:
        """Raises DataError for files that cannot be used."""
        dataset: Dataset = self._once(("dataset", repr(trial.data)), lambda: load_dataset(trial.data))
        return dataset

    def base_key(self, trial: TrialConfig) -> tuple[str, ...]:
        """What trials must have in common to share a base model: model and revision, precision, task head."""
        head = str(len(self.dataset(trial).labels)) if trial.task.name == "classification" else ""
        return ("base", repr(trial.model), trial.precision, trial.task.name, head)

    def base(self, trial: TrialConfig) -> BaseModel:
        """Raises ModelError or HardwareError (see ``load_base``)."""
        labels = len(self.dataset(trial).labels)
        bases = [key for key in self._kept if key[0] == "base"]
        name = self.base_key(trial)
        if name not in self._kept and len(bases) >= _BASES:
            del self._kept[bases[0]]
        base: BaseModel = self._once(
            name, lambda: load_base(trial.model, trial.precision, trial.task.name, labels, self.device)
        )
        return base

    def training(self, trial: TrialConfig) -> list[Encoded]:
        """The training rows as tokens. Raises ConfigError where prompt and label do not fit."""
        return self._tokens(trial, "train").encoded

    def validation(self, trial: TrialConfig) -> Validation:
        """The validation rows as tokens, the rung subset and the bias items."""
        tokens = self._tokens(trial, "validation")
        rung = rung_subset(tokens.rows, trial.eval.rung_items, 0)
        dataset = self.dataset(trial)
        bias = self._bias_items(trial, dataset, tokens)
        return Validation(tokens.rows, tokens.encoded, dataset.labels, rung, bias, dataset.schema)

    def _bias_items(self, trial: TrialConfig, dataset: Dataset, tokens: Tokens) -> BiasItems:
        """What bias is measured on: of a decoder its preferences too, of every task with labels its predictions."""
        bias, task = trial.bias, trial.task
        items = self._once(("bias", repr(bias)), lambda: load_bias(bias)) if task.name != "classification" else None
        if not bias.swap or not dataset.labels:
            return items or BiasItems()
        tokenizer, length = self.base(trial).tokenizer, trial.data.max_length
        swaps = self._once(
            ("swaps", str(bias.swap), repr(trial.data), repr(trial.model), repr(task)),
            lambda: find_swaps(tokens.rows, tokens.encoded, dataset.labels, tokenizer, task, length, bias.swap),
        )
        return replace(items or BiasItems(), swaps=swaps)

    def facts(self, trial: TrialConfig) -> dict[str, Any]:
        """What ``sweep.yaml`` says of the data, the rows that could not be made into tokens included."""
        dataset = self.dataset(trial)
        splits = {split: self._tokens(trial, split) for split in ("train", "validation")}
        left_out = (*dataset.skipped, *(place for tokens in splits.values() for place in tokens.skipped))
        counts = {split: sum(len(row.tokens) for row in tokens.encoded) for split, tokens in splits.items()}
        return replace(dataset, skipped=left_out).facts() | {"tokens": counts}

    def _tokens(self, trial: TrialConfig, split: str) -> Tokens:
        dataset, base = self.dataset(trial), self.base(trial)
        if trial.data.max_length > base.window:
            raise ConfigError(
                f"data.max_length={trial.data.max_length} is longer than the model's window of {base.window} tokens."
                f" Use data.max_length={base.window}, or less."
            )
        training = split == "train"
        name = ("tokens", split, repr(trial.data), repr(trial.model), repr(trial.task))
        tokens: Tokens = self._once(
            name,
            lambda: tokens_of(
                dataset.train if training else dataset.validation,
                dataset.labels,
                dataset.schema,
                base.tokenizer,
                trial.task,
                trial.data.max_length,
                training=training,
                skip=trial.data.on_error == "skip",
            ),
        )
        return tokens

    def _once(self, name: tuple[str, ...], make: Any) -> Any:
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]
