"""What trials and baselines wrote, item by item: beside the reference, the worst first, differences marked.

Answers are the item tables ``generated`` of a sweep folder. ``lorasweep answers``, the report and the trackers read
them here. Everything that is shown of a text goes through ``analysis.text.visible``: models may write control
characters.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from analysis.errors import ConfigError, FolderError, did_you_mean
from analysis.folder import SweepFolder, TrialFolder
from analysis.item_sums import GENERATED
from analysis.leaderboard.baselines import UNTUNED
from analysis.leaderboard.seeds import best_seed, runs
from analysis.metrics import METRICS, badness
from analysis.rows import Row, best_trial, leading_trial, row_files, sweep_yaml
from analysis.text.listing import listed

PREFIX = "generate."  # of the metrics of written answers
_OWN = ("n_tokens", "finished", "judge_parsed")  # numeric columns that are no figure
_EXAMPLES = ("few_shot", "retrieval")  # baselines that write too
# Scripts without spaces between words are compared character by character.
_DENSE = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_DENSE}]|(?:(?![{_DENSE}])\w)+|[^\w\s]")
_MOST_WORDS = 2000  # of a text that are compared: more take long, and nobody reads them

SAME, MISSING, ADDED = "same", "missing", "added"
Piece = tuple[str, str]  # SAME, MISSING (of a reference) or ADDED (of an answer), and a part of the text


@dataclass(frozen=True)
class Answers:
    """What one trial or baseline wrote.

    Attributes:
        name: its id, or the baseline's name.
        step: of the checkpoint that wrote.
        split: of the items.
        columns: of the item table ``generated``, all of one length.
    """

    name: str
    step: int
    split: str
    columns: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(self.columns["item_id"])

    @cached_property
    def places(self) -> dict[str, int]:
        """Item id → its place in the columns."""
        return {str(item): i for i, item in enumerate(self.columns["item_id"])}

    @cached_property
    def figures(self) -> dict[str, list[float]]:
        """Figure → its value for each item, NaN where it has none; named as the metric is behind ``generate.``."""
        found: dict[str, list[float]] = {}
        labels = self.columns["label"]
        for figure, column in (("accuracy", "prediction"), ("constrained_accuracy", "constrained")):
            if column in self.columns:
                found[figure] = [float(a == b) for a, b in zip(self.columns[column], labels, strict=True)]
        if not found and "exact_match" not in self.columns:
            texts = self.columns["generated"]
            found["exact_match"] = [
                float(_text(a).strip() == _text(b).strip()) for a, b in zip(texts, labels, strict=True)
            ]
        for name, values in self.columns.items():
            if name not in _OWN and any(isinstance(value, int | float) for value in values):
                found[name] = [float(value) if isinstance(value, int | float) else math.nan for value in values]
        return found

    def text(self, i: int) -> str:
        """The answer to the item at a place."""
        return _text(self.columns["generated"][i])

    def get(self, column: str, i: int) -> Any:
        """A value of a column that need not be there; None without it."""
        return self.columns[column][i] if column in self.columns else None

    def values(self, i: int) -> dict[str, float]:
        """Figure → value of the item at a place; those that it has none of are left out."""
        return {name: of[i] for name, of in self.figures.items() if math.isfinite(of[i])}

    def mean(self, figure: str, items: Sequence[str]) -> float:
        """Mean of a figure over those of the items that have it; NaN without one."""
        values = [self.figures[figure][self.places[item]] for item in items if item in self.places]
        finite = [value for value in values if math.isfinite(value)]
        return sum(finite) / len(finite) if finite else math.nan


@dataclass(frozen=True)
class Item:
    """One item with what was written to it.

    Attributes:
        item_id: of the row; of an earlier turn of a chat with ``#`` and its number.
        prompt: as people read it; empty where the folder does not have it.
        reference: what stands in the data.
        places: of each of the compared answers the place in its table; None where it did not answer this item.
    """

    item_id: str
    prompt: str
    reference: str
    places: tuple[int | None, ...] = field(default_factory=tuple)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def read(files: TrialFolder, step: int, split: str = "validation") -> Answers | None:
    """The answers of a trial or baseline; None where it has none that can be read.

    Args:
        files: its files.
        step: of the checkpoint that was scored. Where nothing was written at it, the last one at which something was.
        split: of the items.
    """
    try:
        steps = {row.step for row in files.read_metrics() if row.split == split and isinstance(row.step, int)}
    except OSError:
        steps = set()
    for at in [step, *sorted(steps - {step}, reverse=True)]:
        try:
            columns = files.read_items(GENERATED, split, at)
        except (FolderError, OSError):
            continue
        if {"item_id", "label", GENERATED} <= columns.keys():
            return Answers(files.trial_id, at, split, columns)
    return None


@dataclass
class Written:
    """The answers that a sweep folder has, read as they are asked for.

    Attributes:
        folder: the sweep's.
        rows: of its leaderboard, ranked.
    """

    folder: SweepFolder
    rows: Sequence[Row]

    @cached_property
    def _runs(self) -> list[Row]:
        scored = {row.trial_id: row for row in [*runs(self.rows), *self.rows] if row.metrics or row.kind == "baseline"}
        return list(scored.values())

    @cached_property
    def _finals(self) -> dict[str, TrialFolder]:
        return {files.trial_id: files for files in self.folder.finals()}

    def of(self, name: str, split: str = "validation") -> Answers | None:
        """What a trial, a seed of it, a baseline or a finalist wrote; None without answers.

        Args:
            name: such as ``t0003``, ``zero_shot``, or ``t0003-seed1`` of the finals.
            split: ``test`` looks into the finals first.
        """
        if split == "test" and name in self._finals:
            return self._final(name)
        row = next((row for row in self._runs if row.trial_id == name), None)
        if row is not None:
            return read(row_files(self.folder, row), row.step)
        return self._final(name) if name in self._finals else None

    def _final(self, name: str) -> Answers | None:
        rows = [row for row in self._finals[name].read_metrics() if row.final]
        return read(self._finals[name], rows[-1].step, "test") if rows else None

    @property
    def names(self) -> list[str]:
        """Of all that could have written, in the order of the leaderboard."""
        return [*(row.trial_id for row in self._runs), *(name for name in self._finals if self._not_a_row(name))]

    def _not_a_row(self, name: str) -> bool:
        return all(row.trial_id != name for row in self._runs)

    def chosen(self) -> Answers | None:
        """The best trial's answers; else of the first ranked trial, finalist or baseline that wrote some."""
        best = best_trial(self.rows) or leading_trial(self.rows)
        first = [best_seed(best).trial_id] if best is not None else []
        trials = [row.trial_id for row in self._runs if row.kind == "trial"]
        for name in dict.fromkeys([*first, *trials, *self._finals, *self.names]):
            found = self.of(name)
            if found is not None:
                return found
        return None

    def shown(self, name: str | None) -> Answers:
        """The answers of what is named, or of the best trial.

        Raises:
            FolderError: where there are none, with how to get them.
        """
        found = self.chosen() if name is None else self.of(name)
        if found is not None:
            return found
        if name is not None and name not in self.names:
            raise FolderError(f"{self.folder.where}: there is no {name}. {did_you_mean(name, self.names)}")
        with_some = [other for other in self.names if other != name and self.of(other) is not None]
        if with_some:
            raise FolderError(f"{self.folder.where}: {name} wrote no answers. With answers: {listed(with_some, 8)}.")
        raise FolderError(f"{self.folder.where}: {how_to_write(self.folder)}")

    def against(self, shown: Answers, names: Sequence[str] | None) -> list[Answers]:
        """Answers to stand beside those that are shown.

        Args:
            shown: what they are compared with.
            names: of trials and baselines; None: the untuned model, where it wrote some.

        Raises:
            FolderError: for a name without answers, or with none to the same items.
        """
        if names is None:
            untuned = self.of(UNTUNED, shown.split) if shown.name != UNTUNED else None
            return [untuned] if untuned is not None and set(untuned.places) & set(shown.places) else []
        beside = []
        for name in names:
            other = self.of(name, shown.split)
            other = self.shown(name) if other is None else other
            if not set(other.places) & set(shown.places):
                raise FolderError(
                    f"{self.folder.where}: {name} answered no item that {shown.name} did ({other.split} and"
                    f" {shown.split} rows, {len(other)} and {len(shown)} of them): there is nothing to compare."
                )
            beside.append(other)
        return beside

    def baselines(self, shown: Answers) -> list[Answers]:
        """For the report: what another system wrote, the untuned model, and it with examples before each item."""
        ours = [UNTUNED, *_EXAMPLES]
        theirs = [
            row.trial_id for row in self.rows if row.kind == "baseline" and row.trial_id.split("@")[0] not in ours
        ]
        found = [self.of(name, shown.split) for name in (*theirs, *ours) if name != shown.name]
        return [it for it in found if it is not None and set(it.places) & set(shown.places)]


def how_to_write(folder: SweepFolder) -> str:
    """That a sweep has no answers, and what to do about it, in sentences."""
    config = sweep_yaml(folder).get("config")
    task = config.get("task") if isinstance(config, Mapping) else None
    if isinstance(task, Mapping) and task.get("name") == "classification":
        return "a classification head writes no answers. `lorasweep breakdown` shows what it confuses."
    return (
        "no trial of this sweep wrote answers. `lorasweep finalize"
        f" {folder.where} eval.generate=true` trains the best ones again and lets them write. In a sweep trials write"
        " at every rung with eval.generate=rung, and when they complete with eval.generate=final."
    )


def ranking_figure(shown: Answers, metrics: Sequence[str], by: str | None = None) -> str:
    """The figure that says which items are worst.

    Args:
        shown: the answers.
        metrics: those that rank the sweep, the first first.
        by: what the user names, with or without ``generate.``.

    Raises:
        ConfigError: for a figure that the items have not.
    """
    figures = list(shown.figures)
    if by is not None:
        name = by.removeprefix(PREFIX)
        if name not in figures:
            raise ConfigError(f"--by {by}: the items have no such figure. {did_you_mean(name, figures)}")
        return name
    of_metrics = [metric.removeprefix(PREFIX) for metric in metrics if metric.startswith(PREFIX)]
    return next((name for name in of_metrics if name in figures), figures[0])


def worst_first(shown: Answers, figure: str, beside: Sequence[Answers] = ()) -> list[Item]:
    """The items of the answers that are shown, the worst first; of equals those that the next answers are better on.

    Args:
        shown: whose items and figures count.
        figure: by which.
        beside: other answers, in the order in which they are shown.
    """
    tables = (shown, *beside)
    items = []
    for i, item in enumerate(shown.columns["item_id"]):
        places = tuple(table.places.get(str(item)) for table in tables)
        items.append(Item(str(item), _text(shown.get("prompt", i)), _text(shown.columns["label"][i]), places))

    def bad(table: Answers, item: Item) -> float:
        """Higher is worse; minus infinity where there is no value, so that it comes last."""
        place = table.places.get(item.item_id)
        value = table.figures[figure][place] if place is not None and figure in table.figures else math.nan
        return _badness(figure, value) if math.isfinite(value) else -math.inf

    return sorted(items, key=lambda item: (-bad(shown, item), bad(beside[0], item) if beside else 0.0))


def _badness(figure: str, value: float) -> float:
    name = PREFIX + figure
    rankable = name in METRICS and METRICS[name].better is not None
    return badness(name, value) if rankable else -value


def better_or_worse(shown: Answers, other: Answers, figure: str) -> tuple[int, int, int]:
    """On how many of the items of both the one that is shown is better, alike and worse."""
    counts = [0, 0, 0]
    for item, i in shown.places.items():
        place = other.places.get(item)
        if place is None or figure not in other.figures:
            continue
        mine, its = shown.figures[figure][i], other.figures[figure][place]
        if math.isfinite(mine) and math.isfinite(its):
            apart = _badness(figure, mine) - _badness(figure, its)
            counts[0 if apart < 0 else 2 if apart > 0 else 1] += 1
    return counts[0], counts[1], counts[2]


# --- texts


def differences(reference: str, answer: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces: words that the answer lacks, and words that the reference has not.

    Words are compared as they stand, by ``difflib.SequenceMatcher``; white space is no difference.

    Args:
        reference: what stands in the data.
        answer: what was written.

    Returns:
        The pieces of the reference and those of the answer. Joined, each gives the text again.
    """
    ours, theirs = ([*_WORD.finditer(text)][:_MOST_WORDS] for text in (reference, answer))
    matcher = difflib.SequenceMatcher(None, [m[0] for m in ours], [m[0] for m in theirs], autojunk=False)
    blocks = matcher.get_matching_blocks()
    alike = [{block.a + i for block in blocks for i in range(block.size)}]
    alike += [{block.b + i for block in blocks for i in range(block.size)}]
    return _pieces(reference, ours, alike[0], MISSING), _pieces(answer, theirs, alike[1], ADDED)


def _pieces(text: str, words: Sequence["re.Match[str]"], alike: set[int], kind: str) -> list[Piece]:
    """The text in pieces; white space between two words that differ belongs to them."""
    pieces: list[Piece] = []
    at = 0
    for i, word in enumerate(words):
        own = SAME if i in alike else kind
        joined = own == kind and bool(pieces) and pieces[-1][0] == kind
        gap = text[at : word.start()]
        if joined:
            pieces[-1] = (kind, pieces[-1][1] + gap + word[0])
        elif own == SAME and pieces and pieces[-1][0] == SAME:
            pieces[-1] = (SAME, pieces[-1][1] + gap + word[0])
        else:
            pieces += [(SAME, gap)] if gap and own == kind else []
            pieces.append((own, word[0] if own == kind else gap + word[0]))
        at = word.end()
    return [*pieces, (SAME, text[at:])] if text[at:] else pieces


def shortened(text: str, most: int) -> str:
    """A text of at most about so many characters: of a longer one the beginning and, twice as much, the end."""
    if len(text) <= most:
        return text
    return f"{text[: most // 3].rstrip()} … {text[-(most - most // 3) :].lstrip()}"
