"""Keeps ``leaderboard.csv`` up to date while a sweep runs, and removes the adapters that are not to stay."""

from collections.abc import Callable, Sequence

from analysis.folder import ENDED, SweepFolder, remove_tree
from analysis.leaderboard import leaderboard
from analysis.leaderboard.leaderboard import Ranking, Row
from analysis.leaderboard.seeds import runs
from analysis.rows import best_trial, keep_size
from sweeps.process.throttle import Throttle


class LeaderboardWriter:
    """Writes ``leaderboard.csv``, and removes adapters that ``search.keep_adapters`` does not keep.

    Args:
        folder: of the sweep.
        keep: how many adapters stay, those of the best trials; None keeps all. Of a configuration of several seeds
            those of all its seeds stay.
        best: told of the best trial whenever it ranks; None while none has completed.

    Attributes:
        trial_ended: to be called after each end of a trial; ranks now and then (``Throttle``).
    """

    def __init__(
        self, folder: SweepFolder, keep: int | None = None, best: Callable[[Row | None], None] = lambda row: None
    ):
        self.folder, self.keep, self.best = folder, keep, best
        self.trial_ended = Throttle(lambda: self._write(leaderboard.build(folder)))

    def close(self) -> Ranking:
        """Rank, compare and write at the end of a sweep."""
        ranking = leaderboard.ranked(self.folder)
        self._write(ranking.rows)
        return ranking

    def _write(self, rows: Sequence[Row]) -> None:
        leaderboard.write(self.folder, rows)
        self.best(best_trial(rows))
        self._drop_adapters(rows)

    def _drop_adapters(self, rows: Sequence[Row]) -> None:
        if self.keep is None:
            return
        trials = [row for row in rows if row.kind == "trial"]  # the best first
        there = self.folder.with_adapter()
        own = [(row, [run.trial_id for run in runs([row]) if run.trial_id in there]) for row in trials]
        for row, adapters in [(row, adapters) for row, adapters in own if adapters][self.keep :]:
            if row.status in ENDED:
                for trial_id in adapters:
                    keep_size(self.folder.trial(trial_id))
                    remove_tree(self.folder.trial(trial_id).adapter_dir)
