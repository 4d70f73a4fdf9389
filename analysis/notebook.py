"""A sweep as pandas frames: what ``analysis.load`` gives."""

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.errors import FolderError, did_you_mean
from analysis.folder import SweepFolder
from analysis.leaderboard.ranking import Ranking, ranked
from analysis.leaderboard.seeds import runs, spread, with_seeds
from analysis.rows import row_files
from analysis.statistics.items import read_table

if TYPE_CHECKING:
    import pandas as pd


class Run:
    """One sweep folder.

    Args:
        run: the folder.
        by: metrics that rank instead of the objective, separated by commas.

    Attributes:
        folder: its files.
        ranking: rows, objective and how sure the order is; read once.
    """

    def __init__(self, run: str | Path, by: str | None = None):
        self.folder = SweepFolder.open(run)
        self._by = by.split(",") if by else []

    def __repr__(self) -> str:
        return f"analysis.load({self.folder.where!r})"

    @cached_property
    def ranking(self) -> Ranking:
        """The ranking, read once."""
        return ranked(self.folder, self._by)

    def frame(self) -> "pd.DataFrame":
        """A row a trial and baseline, the best first: outcome, searched values, metrics, interval, p, cost, reason.

        Below a configuration of several seeds is a row of kind ``seed`` for each; ``seeds`` is how many it is the mean
        of, and ``sd`` the standard deviation of their objective.
        Searched values are columns named like their config paths (``lora.rank``), metrics like themselves.
        """
        import pandas as pd

        records = []
        rows = with_seeds(self.ranking.rows)
        for row in rows:
            fields = asdict(row) | {"seeds": len(row.seeds), "sd": spread(row)}
            del fields["uncounted"]
            config, metrics = fields.pop("config"), fields.pop("metrics")
            fields["broken"] = "; ".join(fields["broken"])
            rank, reason = fields.pop("rank"), fields.pop("reason")
            first = {"sweep": self.folder.name, "rank": rank}
            records.append(first | fields | config | metrics | {"reason": reason})
        frame = pd.DataFrame(records)
        for path in {path for row in rows for path in row.config}:
            values = {type(row.config.get(path)) for row in rows}
            if values == {int, type(None)}:
                frame[path] = frame[path].astype("Int64")  # a baseline has none: pandas would make it a float
        return frame

    def curves(self) -> "pd.DataFrame":
        """A row an evaluation of a trial or baseline, in the order it was taken: step, tokens, seconds, metrics."""
        import pandas as pd

        records = []
        for kind, files in [("baseline", f) for f in self.folder.baselines()] + [
            ("trial", f) for f in self.folder.trials()
        ]:
            for row in files.read_metrics():
                fields = asdict(row)
                records.append({"kind": kind} | {k: v for k, v in fields.items() if k != "metrics"} | fields["metrics"])
        return pd.DataFrame(records)

    def items(self, trial: str, dataset: str = "task", step: int | None = None) -> "pd.DataFrame":
        """The item scores of one trial or baseline.

        Args:
            trial: its id, such as ``t0003`` or ``zero_shot``; of a further seed ``t0003.1``.
            dataset: ``task``, or a bias set such as ``crows_pairs``.
            step: of the evaluation; the one that is ranked where it is None.

        Raises:
            FolderError: for an unknown trial, or one that was not scored on that.
        """
        rows = {row.trial_id: row for row in [*self.ranking.rows, *runs(self.ranking.rows)]}
        if trial not in rows:
            raise FolderError(f"{self.folder.where}: no trial or baseline '{trial}'. {did_you_mean(trial, rows)}")
        row = rows[trial]
        frame: pd.DataFrame = read_table(
            row_files(self.folder, row), dataset, row.step if step is None else step
        ).to_pandas()
        return frame
