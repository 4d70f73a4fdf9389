"""Whose weights a trial goes on from: ``trials/<id>/lineage.jsonl``, and what a death in the middle left behind.

``study/asks.jsonl`` is the authority. A checkpoint that was copied from a donor says so in ``parent.json``; one that
the driver died before writing down is removed, and the trial goes on from its own.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from analysis.folder import SweepFolder, TrialFolder, append_line, atomic_write, read_lines, remove_tree
from sweeps.search.pbt_exchange import Exchange
from trainer.engines.checkpoints import seal

PARENT = "parent.json"
_OWN = ("best.safetensors",)  # the trial's own best rung stays its own


def take_over(own: TrialFolder, donor: TrialFolder, step: int) -> str:
    """Put a donor's weights and optimiser state into a trial's checkpoint; its counters and its best rung stay its own.

    Args:
        own: folder of the trial.
        donor: folder of the other one.
        step: of a rung that both have reached.

    Returns:
        Why it cannot be done, or "".
    """
    source, target = donor.checkpoint_dir(step), own.checkpoint_dir(step)
    beside = own.checkpoints_dir / f".from-{donor.trial_id}.{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        counters = (target / "counters.json").read_text()
        shutil.copytree(source, beside, ignore=shutil.ignore_patterns("counters.json", PARENT, *_OWN))
        for name in _OWN:
            if (target / name).exists():
                shutil.copyfile(target / name, beside / name)
        atomic_write(beside / PARENT, json.dumps({"parent": donor.trial_id, "step": step}))
        if not (source / "counters.json").exists():  # it was removed meanwhile, and perhaps not copied whole
            raise FileNotFoundError(source)
        seal(beside, json.loads(counters))
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        return f"the checkpoint of {donor.trial_id} at step {step} cannot be taken over ({error})"
    shutil.rmtree(target)
    beside.rename(target)
    return ""


def record(folder: TrialFolder, exchange: Exchange) -> None:
    append_line(folder.lineage_file, _line(exchange.step, exchange.parent, exchange.old, exchange.new))


def exchanged_values(folder: TrialFolder) -> dict[str, Any]:
    """The values that a trial has since its last exchange, in place of those that were suggested; none before."""
    lines = list(read_lines(folder.lineage_file))
    return dict(lines[-1]["new"]) if lines else {}


def _line(step: int, parent: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    return {"step": step, "parent": parent, "old": dict(old), "new": dict(new)}


def reconcile(folder: SweepFolder, records: Iterable[Mapping[str, Any]]) -> None:
    """Before a resume: each trial's lineage is what ``study/asks.jsonl`` says, and its checkpoints go with it."""
    exchanges: dict[str, list[dict[str, Any]]] = {}
    for line in records:
        if line["event"] == "perturb":
            made = _line(line["step"], line["parent"], line["old"], line["values"])
            exchanges.setdefault(line["trial_id"], []).append(made)
    for trial in folder.trials():
        known = exchanges.get(trial.trial_id, [])
        if list(read_lines(trial.lineage_file)) != known and known:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in known)
            atomic_write(trial.lineage_file, text)
        taken = {(line["parent"], line["step"]) for line in known}
        for step in trial.checkpoints():
            if (parent := _parent(trial.checkpoint_dir(step))) and parent not in taken:
                remove_tree(trial.checkpoint_dir(step))


def _parent(checkpoint: Path) -> tuple[str, int] | None:
    try:
        read = json.loads((checkpoint / PARENT).read_text())
    except FileNotFoundError:
        return None
    return read["parent"], read["step"]
