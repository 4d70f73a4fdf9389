"""Prints data as the model sees them, with token lengths and labels: ``lorasweep data``."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.errors import parsed_json
from analysis.text.visible import single_line, visible
from sweeps.checks.length import fitting_tokens
from sweeps.process.console import SafeConsole
from trainer.config import ModelConfig, TrialConfig
from trainer.data.dataset import Dataset, load_dataset, rung_subset
from trainer.data.encode import Encoded
from trainer.data.likeness import lookalikes
from trainer.data.schemas import Row
from trainer.data.tokenize import lost_note, tokens_of
from trainer.evaluation.bias.group_gaps import absent_gaps, group_notes
from trainer.models.model_kind import config_file
from trainer.models.tokenizer import load_tokenizer

_SAMPLE = 20_000  # rows whose lengths are counted
_BINS = 12
_BAR = 40  # columns
_LABELS = 30  # shown
_GROUPS = 8  # shown
_PART = 700  # characters of one stretch of a row
_MARKS = ("⟦", "⟧")


def show_data(trial: TrialConfig, split: str, n_rows: int) -> None:
    """Print rows, lengths and labels of a trial's data.

    Args:
        trial: its data, model and task.
        split: ``train`` or ``validation``, from which rows are shown.
        n_rows: how many rows; 0 for none.

    Raises:
        LorasweepError: for data, a tokenizer or lengths that cannot be used.
    """
    console = SafeConsole(soft_wrap=True)
    dataset = load_dataset(trial.data, lambda message: print(message, flush=True))
    tokenizer = load_tokenizer(trial.model)
    _show_facts(console, dataset)
    if not trial.data.max_length:
        lengths = _lengths(trial, dataset, dataset.train, tokenizer)
        p99 = 0 if dataset.schema == "text" else lengths[len(lengths) * 99 // 100]
        length = min(fitting_tokens(p99, dataset.schema), _window(trial.model))
        trial = replace(trial, data=replace(trial.data, max_length=length))
    rows = dataset.train if split == "train" else dataset.validation
    if n_rows:
        _show_rows(console, trial, dataset, rows, split, tokenizer, n_rows)
    for name, of_split in (("training", dataset.train), ("validation", dataset.validation)):
        _show_lengths(console, trial, dataset, of_split, name, tokenizer)
    if dataset.labels:
        _show_labels(console, dataset)
        for sentence in lookalikes(dataset.labels):
            console.print(sentence, style="yellow")
    if dataset.labels and trial.data.group:
        _show_groups(console, trial, dataset.validation)


def _window(model: ModelConfig) -> int:
    """Tokens that a model reads at once, by its ``config.json``; very many where that cannot be told."""
    file = config_file(model, network=False)
    try:
        settings = parsed_json(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError):
        settings = {}
    settings = settings.get("text_config") or settings
    limit = int(settings.get("max_position_embeddings") or settings.get("n_positions") or 0)
    return limit if limit > 0 else 1 << 20  # -1 is no limit


def _show_facts(console: Console, dataset: Dataset) -> None:
    kept_away = f", {dataset.n_test:,} for test (not read)" if dataset.n_test else ""
    rows = f"{len(dataset.train):,} training and {len(dataset.validation):,} validation rows{kept_away}"
    console.print(f"{rows}; schema {dataset.schema}; fingerprint {dataset.fingerprint[:12]}")
    if dataset.skipped:
        n = len(dataset.skipped)
        console.print(f"{n:,} row{'s' if n > 1 else ''} left out (data.on_error=skip):", style="yellow")
        for said in dataset.skipped[:5]:
            console.print(f"  {said}")
        if n > 5:
            console.print(f"  … and {n - 5:,} more")


def _show_rows(
    console: Console, trial: TrialConfig, dataset: Dataset, rows: list[Row], split: str, tokenizer: Any, n_rows: int
) -> None:
    coloured = console.color_system is not None
    packed = dataset.schema == "text" and split == "train"
    made = tokens_of(
        rows if packed else rows[:n_rows],
        dataset.labels,
        dataset.schema,
        tokenizer,
        trial.task,
        trial.data.max_length,
        training=split == "train",
        skip=trial.data.on_error == "skip",
    )
    classified = trial.task.name == "classification"
    if classified:
        legend = "the head sees the whole row"
    elif coloured:
        legend = Text.assemble(
            "tokens that bear loss are ", ("green", "bold green"), ", the others ", ("dim", "dim")
        ).markup
    else:
        legend = f"tokens that bear loss stand between {_MARKS[0]} and {_MARKS[1]}"
    console.print(f"\nAs the model sees it ({legend}; ↵ is a line break):")
    for number, encoded in enumerate(made.encoded[:n_rows]):
        row = made.rows[number] if made.rows else None
        where = f"{split} window {number + 1}" if row is None else f"{row.item_id}  ({row.place})"
        bearing = "" if classified else f", {encoded.n_bearing} bear loss"
        console.print(f"\n{where}   {len(encoded.tokens)} tokens{bearing}", style="bold")
        console.print(_as_seen(tokenizer, encoded, classified, coloured))
        if classified and row is not None:
            console.print(f"label: {single_line(row.label)}")


def _as_seen(tokenizer: Any, encoded: Encoded, classified: bool, coloured: bool) -> Text:
    """The row's text, special tokens included, in stretches that bear loss or not."""
    bears = [False] * len(encoded.context)
    bears += encoded.bears if encoded.bears is not None else [not classified] * len(encoded.completion)
    text, start = Text(), 0
    tokens = encoded.tokens
    for end in range(1, len(tokens) + 1):
        if end < len(tokens) and bears[end] == bears[start]:
            continue
        part = _printable(tokenizer.decode(tokens[start:end], skip_special_tokens=False))
        if bears[start] and not coloured:
            part = f"{_MARKS[0]}{part}{_MARKS[1]}"
        text.append(part, style="bold green" if bears[start] else "" if classified else "dim")
        start = end
    return text


def _printable(text: str) -> str:
    """One stretch with its middle left out where it is long, line breaks and control characters made visible."""
    if len(text) > _PART:
        text = f"{text[: _PART // 2]} […{len(text) - _PART:,} characters…] {text[-_PART // 2 :]}"
    return visible(text).replace("\n", "↵\n").replace("\t", "␉")


def _show_lengths(
    console: Console, trial: TrialConfig, dataset: Dataset, rows: list[Row], name: str, tokenizer: Any
) -> None:
    counted = rows[:_SAMPLE]
    lengths = _lengths(trial, dataset, rows, tokenizer)
    limit = trial.data.max_length
    of = f"the first {len(counted):,} of {len(rows):,}" if len(counted) < len(rows) else f"{len(counted):,}"
    middle, high = lengths[len(lengths) // 2], lengths[math.ceil(0.95 * len(lengths)) - 1]
    console.print(f"\nTokens a row, {of} {name} rows: median {middle}, 95 % at most {high}, longest {lengths[-1]}")
    bins = _histogram(lengths)
    most = max(n for _, _, n in bins)
    for low, up, n in bins:
        bar = "█" * max(1, round(_BAR * n / most)) if n else ""
        console.print(f"  {low:>7,}–{up:<7,} {bar} {n:,}")
    n_cut = sum(length > limit for length in lengths)
    if dataset.schema == "text":
        console.print(
            f"  data.max_length={limit}: {n_cut:,} texts are longer and stand in several windows; nothing is cut."
        )
    elif n_cut:
        share = 100 * n_cut / len(lengths)
        advice = f"data.max_length={high} would keep 95 %." if high > limit else ""
        sentence = f"  data.max_length={limit} cuts {n_cut:,} of them ({share:.1f} %). {advice}"
        console.print(sentence.rstrip(), style="yellow" if share >= 5 else "")
        _show_lost(console, trial, dataset, counted, name, tokenizer)
    else:
        console.print(f"  data.max_length={limit} cuts none.")


def _show_lost(
    console: Console, trial: TrialConfig, dataset: Dataset, rows: list[Row], name: str, tokenizer: Any
) -> None:
    """What is cut of the tokens that bear loss, if any are."""
    limit, labels = trial.data.max_length, dataset.labels
    made = tokens_of(rows, labels, dataset.schema, tokenizer, trial.task, limit, training=True, skip=True)
    counts = {name: {"rows": made.lost, "of": len(made.encoded), "needed": made.needed}}
    if note := lost_note(limit, _window(trial.model), counts):
        console.print(f"  {note}", style="yellow")


def _lengths(trial: TrialConfig, dataset: Dataset, rows: list[Row], tokenizer: Any) -> list[int]:
    """Tokens of each row, the shortest first; of the first rows, where there are very many."""
    whole = tokens_of(
        rows[:_SAMPLE], dataset.labels, dataset.schema, tokenizer, trial.task, 1 << 40, training=False, skip=True
    )
    return sorted(len(row.tokens) for row in whole.encoded)


def _histogram(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """First and last length of each bin, and how many rows fall in it."""
    width = max(1, -(-(lengths[-1] - lengths[0] + 1) // _BINS))
    counts = Counter((length - lengths[0]) // width for length in lengths)
    return [(lengths[0] + b * width, lengths[0] + (b + 1) * width - 1, counts[b]) for b in range(max(counts) + 1)]


def _show_groups(console: Console, trial: TrialConfig, rows: list[Row]) -> None:
    """Validation rows of each label in each group, and what gaps between groups can be measured on so many."""
    counts = Counter((row.label, row.group) for row in rows if row.group is not None)
    groups = Counter(row.group for row in rows if row.group is not None)
    if not groups:
        console.print(f"\nNo validation row has a group (data.group={trial.data.group}).", style="yellow")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("validation rows", overflow="ellipsis", max_width=40)
    shown = [str(group) for group, _ in groups.most_common(_GROUPS)]
    for group in shown:
        table.add_column(Text(single_line(group)), justify="right")
    for label in list(dict.fromkeys(row.label for row in rows))[:_LABELS]:
        table.add_row(Text(single_line(label)), *(f"{counts[label, group]:,}" for group in shown))
    console.print()
    console.print(table)
    if len(groups) > _GROUPS:
        console.print(f"… and {len(groups) - _GROUPS:,} more groups")
    rung = [rows[i] for i in rung_subset(rows, trial.eval.rung_items, 0)]
    absent = [f"not measured: {why}" for why in dict.fromkeys(absent_gaps(trial, [], rung).values())]
    for note in [*absent, *group_notes(trial, rung, rows)]:
        console.print(note, style="yellow")


def _show_labels(console: Console, dataset: Dataset) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("label", overflow="ellipsis", max_width=40)
    table.add_column("training", justify="right")
    table.add_column("validation", justify="right")
    train, validation = (Counter(row.label for row in rows) for rows in (dataset.train, dataset.validation))
    for label, n in train.most_common(_LABELS):
        shares = [f"{m:,} ({100 * m / len(rows):.1f} %)" for m, rows in (
            (n, dataset.train), (validation[label], dataset.validation))]  # fmt: skip
        table.add_row(Text(single_line(label)), *shares)
    console.print()
    console.print(table)
    if len(train) > _LABELS:
        console.print(f"… and {len(train) - _LABELS:,} more labels")
