"""How many trials are handed out at a time."""

from typing import Any

from ray.tune.search import Searcher

from sweeps.pacing import GROW_SECONDS, PacedSearch


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
    now, inner = [0.0], Endless()
    search = PacedSearch(inner, 4, lambda: now[0])
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
    assert inner.answers == ["a", "a ended", "b ended", "c ended", "d ended", "f", "e ended"]
