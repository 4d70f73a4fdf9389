"""The study mirrored to ``study/journal.log``, so that ``optuna-dashboard`` can watch a sweep.

Nothing is ever read back from it: ``study/asks.jsonl`` is the authority. A mirror that breaks (a full disk, a lock that
somebody holds) is given up with one warning, and the sweep goes on.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

logger = logging.getLogger(__name__)


class DashboardJournal:
    """Writes what the search does to an Optuna journal, trial numbers kept.

    Args:
        file: the journal. It is written anew each time a sweep is started or resumed, because a crash may have torn it.
        study_name: as the dashboard shows it.
    """

    def __init__(self, file: Path, study_name: str):
        self.file, self.study_name = file, study_name
        self._storage: JournalStorage | None = None
        self._ids: list[int] = []  # trial number → id in the journal

    def start(self, trials: Iterable[FrozenTrial], directions: Iterable[StudyDirection]) -> None:
        """Create the study, with the trials there are already, in the order of their numbers."""
        with self._or_give_up():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            for stale in (self.file, self.file.with_name(self.file.name + ".lock")):
                stale.unlink(missing_ok=True)  # a lock left by a killed driver would be waited for, 30 s long
            self._storage = JournalStorage(JournalFileBackend(str(self.file)))
            self._study_id = self._storage.create_new_study(list(directions), self.study_name)
        for trial in trials:
            self.asked(trial)

    def asked(self, trial: FrozenTrial) -> None:
        """A trial was handed out. One handed out again after a resume is there already."""
        with self._or_give_up() as storage:
            if storage and trial.number == len(self._ids):
                self._ids.append(storage.create_new_trial(self._study_id, template_trial=trial))

    def rung(self, number: int, step: int, value: float) -> None:
        with self._or_give_up() as storage:
            if storage:
                storage.set_trial_intermediate_value(self._ids[number], step, value)

    def ended(self, trial: FrozenTrial) -> None:
        """A trial ended: its attributes, constraints included, then its state and value."""
        with self._or_give_up() as storage:
            if not storage:
                return
            own = self._ids[trial.number]
            known = storage.get_trial(own)
            for name, value in trial.user_attrs.items():
                if known.user_attrs.get(name) != value:
                    storage.set_trial_user_attr(own, name, value)
            for name, value in trial.system_attrs.items():
                if known.system_attrs.get(name) != value:
                    storage.set_trial_system_attr(own, name, value)
            storage.set_trial_state_values(own, trial.state, trial.values)

    @contextmanager
    def _or_give_up(self) -> Iterator[JournalStorage | None]:
        try:
            yield self._storage
        except Exception as error:
            logger.warning("%s: no longer written, the dashboard will not see new trials (%s)", self.file, error)
            self._storage = None
