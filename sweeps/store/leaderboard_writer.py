"""Keeps ``leaderboard.csv`` up to date while a sweep runs, and removes the adapters that are not to stay."""

from collections.abc import Sequence

from analysis.folder import ENDED, SweepFolder, remove_tree
from analysis.leaderboard import leaderboard
from analysis.leaderboard.leaderboard import Ranking, Row
from sweeps.process.throttle import Throttle


class LeaderboardWriter:
    """Writes ``leaderboard.csv``, and removes adapters that ``search.keep_adapters`` does not keep.

    Args:
        folder: of the sweep.
        keep: how many adapters stay, those of the best trials; None keeps all.

    Attributes:
        trial_ended: to be called after each end of a trial; ranks now and then (``Throttle``).
    """

    def __init__(self, folder: SweepFolder, keep: int | None = None):
        self.folder, self.keep = folder, keep
        self.trial_ended = Throttle(lambda: self._write(leaderboard.build(folder)))

    def close(self) -> Ranking:
        """Rank, compare and write at the end of a sweep."""
        ranking = leaderboard.ranked(self.folder)
        self._write(ranking.rows)
        return ranking

    def _write(self, rows: Sequence[Row]) -> None:
        leaderboard.write(self.folder, rows)
        self._drop_adapters(rows)

    def _drop_adapters(self, rows: Sequence[Row]) -> None:
        if self.keep is None:
            return
        trials = [row for row in rows if row.kind == "trial"]  # the best first
        there = self.folder.with_adapter()
        kept = [row for row in trials if row.trial_id in there][: self.keep]
        for row in trials:
            if row not in kept and row.status in ENDED and row.trial_id in there:
                remove_tree(self.folder.trial(row.trial_id).adapter_dir)
