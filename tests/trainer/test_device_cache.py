"""What a device keeps between trials."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from analysis.errors import ConfigError
from trainer.config import TrialConfig
from trainer.device_cache import DeviceCache, _own_metrics


def test_the_base_models_that_were_used_last_are_kept(
    make_trial: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    kept = DeviceCache(torch.device("cpu"))
    monkeypatch.setattr(kept, "dataset", lambda trial: SimpleNamespace(labels=()))
    monkeypatch.setattr(kept, "_loaded", lambda trial, labels: loaded.append(trial.model.path) or object())
    trial: Any = make_trial("llama")
    for name in (*"abcd", "a", "e", "a", "b"):  # b makes room for e, as a was used since
        kept.base(replace(trial, model=replace(trial.model, path=name)))
    assert loaded == [*"abcde", "b"]


def test_an_own_metric_whose_file_differs_stops_a_worker() -> None:
    """A worker with another file than the one that the sweep was composed with would score by another metric."""
    entries = {"own": {"command": ""}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.answers.own_metrics.OwnMetrics.fault", lambda self, name: "is another file here.")
        with pytest.raises(ConfigError, match=r"eval\.metrics\.own: is another file here"):
            _own_metrics(entries)
