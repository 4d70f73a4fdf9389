"""``report.html``: a sweep in one file that opens anywhere, without a network."""

from analysis.report.page import write

__all__ = ["write"]
