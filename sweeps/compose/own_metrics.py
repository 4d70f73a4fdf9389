"""A user's own metrics in a config: looked up once, before anything reads which metrics there are."""

from pathlib import Path
from typing import Any

from analysis.errors import ConfigError
from analysis.metrics import METRICS, own_metrics
from sweeps.compose.conf_tree import SHIPPED
from sweeps.compose.provenance import Origins
from sweeps.compose.to_dataclass import get, put
from trainer.answers.own_metrics import completed


def complete_metrics(raw: dict[str, Any], origins: Origins, stored: bool) -> None:
    """Complete ``eval.metrics`` in place, and declare what is in it to the metric table.

    The column of ``eval.code_tests`` is read along with the rows, as those of ``data.extra_columns`` are.

    Args:
        raw: nested.
        origins: its files say where functions are looked for: where the command is run, then beside each file.
        stored: it was completed where the sweep began.

    Raises:
        ConfigError: for a metric that cannot be used.
    """
    metrics, column = get(raw, "eval.metrics"), get(raw, "eval.code_tests")
    extra = get(raw, "data.extra_columns")
    if column and isinstance(extra, list) and column not in extra:
        put(raw, "data.extra_columns", [*extra, column])
    if not metrics or not isinstance(metrics, dict):
        return
    if not stored:
        own = [source.file.parent for source in origins.sources if not source.file.is_relative_to(SHIPPED)]
        folders = [Path.cwd(), *(folder for file in own for folder in (file, file.parent))]
        try:
            metrics = completed(metrics, list(dict.fromkeys(folders)))
        except ConfigError as error:
            raise ConfigError(f"{error} ({origins.of('eval.metrics')})") from None
        put(raw, "eval.metrics", metrics)
    METRICS.declare(own_metrics(metrics))
