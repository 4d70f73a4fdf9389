"""From a finished or running sweep to ranking, statistics, tables and reports. Imports neither Ray nor torch.

In a notebook::

    import analysis

    run = analysis.load("runs/quickstart")
    run.frame()            # a row a trial and baseline, ranked
    run.curves()           # a row an evaluation
    run.items("t0003")     # a row a validation item: label, prediction, log-probabilities
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.notebook import Run


def load(run: str | Path, by: str | None = None) -> "Run":
    """A sweep folder as pandas frames.

    Args:
        run: the folder that ``lorasweep run`` printed; it may be running.
        by: metrics that rank instead of the objective, as in ``lorasweep rank --by``.

    Raises:
        FolderError: where there is no sweep.
    """
    from analysis.notebook import Run

    return Run(run, by)
