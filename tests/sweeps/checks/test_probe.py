"""What a trial costs at each length that its rows may be cut to."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sweeps.checks.length import asked_about
from sweeps.checks.probe import Probe, Prober
from sweeps.compose.compose import compose
from trainer.config import EngineConfig, TrialConfig
from trainer.data.dataset import load_dataset
from trainer.engines import pack


@pytest.fixture
def sized(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sizes of a sweep over long rows, and the lengths that were probed, where a token costs what is said."""
    train = tmp_path / "long.csv"
    train.write_text("text,label\n" + "".join(f"{'apple plum ' * (100 + n % 40)},{'ab'[n % 2]}\n" for n in range(40)))

    def sizes(seconds: dict[int, float]) -> Any:
        given = [word for word in tiny("bert", "task=classification") if not word.startswith("data.")]
        composed = compose(
            [*given, "data=csv", f"data.train={train}", "data.max_length=0", "precision=fp32", "bias=none"]
        )
        monkeypatch.setattr("sweeps.checks.probe._PROBED_TOKENS", 32)  # the tiny model's window is 128 tokens
        monkeypatch.setattr("sweeps.checks.probe._SHORT", 16)
        real, probed = Prober.probe, []

        def probe(self: Prober, trial: TrialConfig) -> Probe:
            probed.append(trial.data.max_length)
            found = real(self, trial)
            a_token = seconds[trial.data.max_length]
            budget = dataclasses.replace(found.budget, per_token=a_token, fixed=0.0)
            tokens = found.item_tokens  # of one label: a classifier scores a row once
            return dataclasses.replace(found, budget=budget, item_seconds=a_token * tokens, besides=0.0)

        monkeypatch.setattr(Prober, "probe", probe)
        prober = Prober(load_dataset(composed.config.data), torch.device("cpu"), EngineConfig())
        return prober.sizes(asked_about(composed)), probed

    return sizes


def test_the_longest_rows_are_probed_too_and_what_lies_between_is_between(sized: Any) -> None:
    found, probed = sized({32: 1e-5, 128: 4e-5})
    assert probed == [32, 128]
    a_token = {n: cost.own / cost.tokens for n, cost in found.costs.items()}  # all rows are cut: none is padded
    assert a_token == pytest.approx({128: 4e-5, 64: 2e-5, 32: 1e-5, 16: 1e-5})
    assert found.item_seconds == pytest.approx({n: n * seconds for n, seconds in a_token.items()})
    assert all(cost.rung_seconds == pytest.approx(8 * found.item_seconds[n]) for n, cost in found.costs.items())


def test_a_slow_device_is_not_probed_twice(sized: Any) -> None:
    found, probed = sized({32: 0.01})
    assert probed == [32]
    assert found.costs[128].own == pytest.approx(4 * found.costs[32].own)


def test_what_a_step_takes_besides_its_passes_is_counted(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed = compose(tiny("bert", "task=classification", "precision=fp32", "data.max_length=32"))
    prober = Prober(load_dataset(composed.config.data), torch.device("cpu"), EngineConfig())
    step = pack.adamw_step

    def slow(*args: Any) -> None:
        time.sleep(0.2)
        step(*args)

    monkeypatch.setattr(pack, "adamw_step", slow)
    trial = composed.trial("t0000", {})
    probe = prober.probe(trial)
    assert probe.besides > 0.1
    cost = prober.cost(trial, probe, 1)
    assert cost.own - prober.cost(trial, dataclasses.replace(probe, besides=0.0), 1).own == pytest.approx(probe.besides)
