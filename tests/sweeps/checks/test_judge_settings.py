"""What of a judge is told before anything is loaded."""

from pathlib import Path

import pytest

from analysis.errors import LorasweepError
from sweeps.checks.preflight import _check_judge
from trainer.config import JudgeConfig

SERVER = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"server": "127.0.0.1:9"}, "expected an address such as http://"),
        ({"server": SERVER, "prompt": "which? {first} {second}"}, "{prompt}"),
        ({"server": SERVER, "key_variable": "NO_SUCH_KEY"}, "NO_SUCH_KEY"),
        ({"server": SERVER, "path": "judge"}, "one model judges"),
        ({"server": SERVER, "calibration": "/nowhere.jsonl"}, "cannot be read"),
        ({"path": "/nowhere"}, "/nowhere"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, str], said: str) -> None:
    with pytest.raises(LorasweepError) as raised:
        _check_judge(JudgeConfig(**settings))
    assert said in str(raised.value)


def test_a_judge_that_can_be_asked_and_none_are_fine(tmp_path: Path) -> None:
    _check_judge(JudgeConfig())
    _check_judge(JudgeConfig(server=SERVER))
