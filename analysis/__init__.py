"""From a finished or running sweep to ranking, statistics and tables. Imports neither Ray nor torch."""
