"""What a device keeps between trials."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.config import TrialConfig
from trainer.device_cache import DeviceCache


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
