"""No more trials at a time than there are slots and proxies for, so that Tune starts no process in vain.

Tune keeps the actor of a trial that ended for the next one, but gives it first to a trial whose own actor still starts,
and ends that one. Where trials are over sooner than a process starts (a second or more), each of them would cost the
start of a process that is never used, for ever. So, once the first trials are handed out, the next one is suggested
where an actor has become free; and one beyond that now and then, because actors can die.

Of the actors of several trials that end at once, as those of a pack do, Tune keeps one and ends the others, unless it
is told to keep more (``keep_actors``).
"""

import time
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

GROW_SECONDS = 10.0


def keep_actors(tune_controller: Any, trial: Any, most: int) -> None:
    """Let Tune keep up to ``most`` actors of trials that ended. It offers no setting for that.

    Args:
        tune_controller: what Tune gives to a scheduler.
        trial: one of Tune's own; all ask for the same resources.
        most: trials at a time.
    """
    cache = getattr(getattr(tune_controller, "_tune_controller", None), "_actor_cache", None)
    if cache is not None:
        cache.increase_max(trial.placement_group_factory, most)


class PacedSearch(Searcher):
    """Passes everything on to another searcher, but suggests nothing while all known actors are busy.

    Args:
        inner: the search.
        most: how many trials may run at a time now; it follows the cluster.
        clock: seconds, never going back.
    """

    def __init__(self, inner: Searcher, most: Callable[[], int], clock: Callable[[], float] = time.monotonic):
        super().__init__(metric=inner.metric, mode=inner.mode)
        self.inner, self._most, self._clock = inner, most, clock
        self._started, self._grown = 0, clock()  # trials for which no actor was known, and when the last of them was
        self._live: set[str] = set()
        self._actors: set[Any] = set()  # that have reported, by process

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return bool(self.inner.set_search_properties(metric, mode, config, **spec))

    def suggest(self, trial_id: str) -> Any:
        now, most = self._clock(), self._most()
        if len(self._live) >= most:
            return None
        free = len(self._live) < len(self._actors)
        if not (free or self._started < most or now - self._grown >= GROW_SECONDS):
            return None
        suggestion = self.inner.suggest(trial_id)
        if isinstance(suggestion, dict):
            self._live.add(trial_id)
            if not free:
                self._started += self._started < most
                self._grown = now
        return suggestion

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._note(result)
        self.inner.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._note(result or {})
        self._live.discard(trial_id)
        self.inner.on_trial_complete(trial_id, result=result, error=error)

    def save(self, checkpoint_path: str) -> None:
        self.inner.save(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        self.inner.restore(checkpoint_path)

    def _note(self, result: dict[str, Any]) -> None:
        if "pid" in result:  # Tune puts it there
            self._actors.add((result.get("hostname"), result["pid"]))
