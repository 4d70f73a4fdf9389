"""How fast a device is, by which trials are given to devices."""

import itertools

import pytest
import torch

from trainer.models import base_model
from trainer.models.base_model import arithmetic_speed


def test_the_speed_of_a_cpu_leaves_out_the_time_that_others_had_it(monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = arithmetic_speed(torch.device("cpu"))
    late = itertools.count()
    monkeypatch.setattr(base_model.time, "perf_counter", lambda: float(next(late)))  # a second passes with every look
    assert arithmetic_speed(torch.device("cpu")) > undisturbed / 4
