"""How many trials are handed out at a time."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from sweeps.search.pacing import GROW_SECONDS, PacedSearch


class Endless(Searcher):
    def __init__(self) -> None:
        super().__init__(metric="objective", mode="max")
        self.answers: list[str] = []

    def suggest(self, trial_id: str) -> Any:
        return {"trial_id": trial_id}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.answers.append(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.answers.append(f"{trial_id} ended")

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...


def test_after_the_first_trials_the_next_one_waits_for_an_actor() -> None:
    now, most, inner = [0.0], [4], Endless()
    search = PacedSearch(inner, lambda: most[0], lambda: now[0])
    assert all(search.suggest(name) for name in "abcd")
    assert search.suggest("e") is None
    search.on_trial_result("a", {"pid": 1, "hostname": "x"})
    search.on_trial_complete("a", {"pid": 1, "hostname": "x"})
    assert search.suggest("e") is None, "three wait for actors: the one that is free is theirs"
    for name in "bc":
        search.on_trial_complete(name, {"pid": 1, "hostname": "x"})
    search.on_trial_complete("d", None, error=True)
    assert search.suggest("e"), "one actor is known, and free"
    assert search.suggest("f") is None
    now[0] += GROW_SECONDS
    assert search.suggest("f"), "perhaps there is room for a second one"
    assert search.suggest("g") is None
    search.on_trial_result("f", {"pid": 2, "hostname": "x"})
    search.on_trial_complete("e", {"pid": 1, "hostname": "x"})
    assert search.suggest("g"), "two actors are known now"
    assert search.suggest("h") is None
    most[0] = 6
    assert [bool(search.suggest(name)) for name in "hijk"] == [True, True, False, False], "there is room for two more"
    most[0] = 0
    now[0] += GROW_SECONDS
    assert search.suggest("l") is None, "there is no device"
    assert inner.answers == ["a", "a ended", "b ended", "c ended", "d ended", "f", "e ended"]


WAVES = """
import sys
from pathlib import Path
from sweeps.search import pacing
from sweeps.compose.compose import compose
from sweeps.run import run_sweep
from tests.benchmarks.simulated import SimulatedEngine, SimulatedWorker, overrides

class Waves(SimulatedEngine):
    '''All slots reach their rungs, and end, at the same moment, as those of a pack do.'''

    def advance(self, until=None, leaving=None):
        events = []
        if len(self.slots) == self.capacity_ and not any(slot.resting for slot in self.slots.values()):
            while going := super().advance():
                events += going
        return events

class Worker(SimulatedWorker):
    def _make_engine(self):
        return Waves(self.slots, self.objective.score, 0.0)

reported, note = set(), pacing.PacedSearch._note

def noting(self, result):
    reported.add(result.get("pid"))
    note(self, result)

pacing.PacedSearch._note = noting
if "unmended" in sys.argv:
    from sweeps.search import scheduler
    scheduler.keep_actors = lambda *_: None
given = ["search.trials=12", "resources.slots=3", "train.max_steps=4", "train.rungs=[4]", "scheduler=fifo"]
run_sweep(compose([*overrides(Path(sys.argv[1])), *given]), view="quiet", worker=Worker)
print("proxies", len(reported - {None}))
"""


@pytest.mark.parametrize("mended", [True, pytest.param(False, marks=pytest.mark.heavy)])
def test_trials_that_end_at_once_leave_their_proxies_to_the_next_ones(mended: bool, tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", WAVES, str(tmp_path), *([] if mended else ["unmended"])],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    n = int(done.stdout.split("proxies")[-1])
    assert n == 3 if mended else n > 3
