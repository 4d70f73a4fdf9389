"""A sweep folder of any size with made-up trials, for measuring what reads sweep folders.

    python tests/benchmarks/synthetic.py /tmp/runs/big --trials 1000
    python tests/benchmarks/synthetic.py /tmp/runs/big --trials 1000 --measure    # then rank and report it, timed

The folder is written by the classes that real sweeps use; only the numbers are made up: trials over rank, alpha rule,
learning rate and precision, a plateau with a cliff over the learning rate (trials beyond it diverge), ASHA-like early
stopping, items with a difficulty that trials share, CrowS-Pairs tables, the untuned model as a baseline.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from analysis.folder import MetricsRow, State, Status, SweepFolder, append_line, atomic_write

LABELS = ["atheism", "graphics", "medicine", "motorcycles"]
RUNGS = (4, 12, 36)
CATEGORIES = ("age", "disability", "gender", "race-color", "religion", "sexual-orientation")
SPACE = {
    "lora.rank": {"values": [4, 8, 16, 32], "when": {}},
    "lora.alpha_rule": {"values": ["fixed", "ratio", "sqrt"], "when": {}},
    "optim.lr": {"low": 1e-4, "high": 2e-2, "log": True, "step": None, "integer": False, "when": {}},
    "precision": {"values": ["fp32", "bf16", "nf4"], "when": {}},
}
OBJECTIVE = {
    "name": "balanced",
    "rho": 0.05,
    "terms": {
        "quality": {"metric": "macro_f1", "direction": "max", "target": None, "range": [0.0, 1.0], "weight": 1.0},
        "bias": {
            "metric": "bias.crows_pairs.distance",
            "direction": "min",
            "target": None,
            "range": [0.0, 25.0],
            "weight": 0.25,
        },
    },
}


class Maker:
    """Writes one made-up sweep.

    Args:
        root: the sweep folder; must not exist.
        items: validation items; a quarter of them is the rung subset.
        pairs: CrowS-Pairs items.
        completes: share of the trials that are not stopped early.
    """

    def __init__(self, root: Path, items: int = 500, pairs: int = 60, completes: float = 0.25, seed: int = 0):
        self.folder, self.rng, self.completes = SweepFolder(root), np.random.default_rng(seed), completes
        self.gold = self.rng.integers(len(LABELS), size=items)
        self.hard, self.pair_bias = self.rng.standard_normal(items), self.rng.standard_normal(pairs)
        self.clock = 1_700_000_000.0
        manifest = {
            "format_version": 1,
            "uid": "0123abcd",
            "name": root.name,
            "created": "2026-01-01T00:00:00+00:00",
            "command": ["lorasweep", "run", "experiment=quickstart", "search.trials=1000"],
            "config": {
                "objective": OBJECTIVE,
                "search": {"trials": 1000},
                "task": {"name": "completion"},
                "engine": {"name": "packed"},
                "model": {"source": "package", "package": "smollm2"},
                "data": {"source": "newsgroups", "max_length": 128},
            },
            "unresolved": {},
            "space": SPACE,
            "seed": 0,
            "data": {"rows": {"train": 800, "validation": items}, "labels": LABELS, "fingerprint": "0" * 64},
            "versions": {"python": "3.11", "lorasweep": "0.1.0"},
            "commit": None,
            "hardware": {"host": "synthetic", "devices": [{"device": "CPU, 2 threads"}]},
        }
        atomic_write(self.folder.sweep_file, yaml.safe_dump(manifest, sort_keys=False))

    def baseline(self) -> None:
        files = self.folder.baseline("zero_shot")
        metrics = self._items(files, 0, 0.4, 0.1, len(self.gold))
        files.append_metrics(MetricsRow("zero_shot", 0, 0, 2.0, True, len(self.gold), metrics))
        files.write_status(Status(State.COMPLETED))

    def trial(self, number: int) -> None:
        values = {
            "lora.rank": int(self.rng.choice([4, 8, 16, 32])),
            "lora.alpha_rule": str(self.rng.choice(["fixed", "ratio", "sqrt"])),
            "optim.lr": float(10 ** self.rng.uniform(-4, math.log10(2e-2))),
            "precision": str(self.rng.choice(["fp32", "bf16", "nf4"])),
        }
        name = f"t{number:04d}"
        files = self.folder.trial(name)
        self._ask("ask", name, number, values)
        config = {
            "trial_id": name,
            "precision": values["precision"],
            "seed": 0,
            "model": {"source": "package", "package": "smollm2", "path": None, "name": None, "revision": None},
            "data": {
                "source": "newsgroups",
                "train": None,
                "validation": None,
                "text": "text",
                "label": "label",
                "group": None,
                "max_length": 128,
                "topics": {f"topic.{i}": LABELS[i] for i in range(4)},
            },
            "task": {"name": "completion", "prompt": "{text}\n\nLabel:", "normalization": "sum"},
            "engine": {"name": "packed", "kernel": "auto", "activation_checkpointing": False},
            "lora": {
                "rank": values["lora.rank"],
                "alpha_rule": values["lora.alpha_rule"],
                "alpha_value": 16.0,
                "dropout": 0.0,
                "targets": "attention",
                "dora": False,
                "bias": "none",
                "modules_to_save": [],
            },
            "optim": {
                "lr": values["optim.lr"],
                "weight_decay": 0.0,
                "schedule": "linear",
                "warmup": 0.1,
                "beta1": 0.9,
                "beta2": 0.999,
            },
            "train": {"max_steps": 36, "batch_size": 16, "accumulation": 1, "rungs": list(RUNGS), "clip": 1.0},
            "eval": {"rung_items": 128, "batch_size": 16},
            "bias": {"name": "fast", "crows_pairs": 60},
        }
        atomic_write(files.config_file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        rate, rank = math.log10(values["optim.lr"]), values["lora.rank"]
        reached = 0.9 - 0.12 * (rate + 2.6) ** 2 - 0.02 * (values["precision"] == "nf4") + 0.004 * math.log2(rank)
        if rate > -2.0 and self.rng.random() < 0.7:
            self._end(
                files, number, values, Status(State.DIVERGED, f"the loss was nan at step {RUNGS[0] - 1}", 3), None
            )
            return
        goes_on = self.rng.random() < self.completes
        n = len(self.gold) // 4
        for rung in RUNGS if goes_on else RUNGS[: 1 + (self.rng.random() < 0.4)]:
            share = reached - 0.25 * math.exp(-rung / 10)
            metrics = self._items(files, rung, share, 0.5, n)
            files.append_metrics(MetricsRow(name, rung, rung * 1100, rung * 2.0, False, n, metrics))
            self._ask("rung", name, number, values, metrics["macro_f1"], rung)
        if not goes_on:
            status = Status(State.STOPPED_EARLY, f"scheduler: not among the best at step {rung}", rung)
            self._end(files, number, values, status, metrics["macro_f1"])
            return
        metrics = self._items(files, RUNGS[-1], reached, 0.5, len(self.gold))
        files.append_metrics(MetricsRow(name, RUNGS[-1], 40_000, 75.0, True, len(self.gold), metrics))
        head = json.dumps({f"layer.{i}": {"dtype": "F32", "shape": [rank, 576]} for i in range(60)}).encode()
        atomic_write(files.adapter_dir / "adapter_model.safetensors", len(head).to_bytes(8, "little") + head)
        self._end(files, number, values, Status(State.COMPLETED, "", RUNGS[-1]), metrics["macro_f1"])

    def _items(self, files: Any, step: int, share: float, stereotype: float, n: int) -> dict[str, float]:
        """Item tables of an evaluation, and its metrics."""
        from scipy.special import ndtri

        own = math.sqrt(0.6) * self.hard[:n] + math.sqrt(0.4) * self.rng.standard_normal(n)
        gold, classes = self.gold[:n], len(LABELS)
        told = np.where(
            own < ndtri(min(max(share, 0.02), 0.99)), gold, (gold + self.rng.integers(1, classes, n)) % classes
        )
        logits = self.rng.normal(0, 0.3, (n, classes)) + 2.0 * np.eye(classes)[told]
        logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        tokens = self.rng.integers(20, 128, n)
        columns = {
            "item_id": [f"validation-{i}" for i in range(n)],
            "group": [None] * n,
            "label": [LABELS[g] for g in gold],
            "prediction": [LABELS[t] for t in told],
            "logprobs": logprobs.tolist(),
            "nll": (2.5 * tokens).tolist(),
            "n_tokens": tokens.tolist(),
            "n_bytes": (4 * tokens).tolist(),
            "completion_nll": (-logprobs[np.arange(n), gold]).tolist(),
            "completion_tokens": [1] * n,
        }
        files.write_items("task", "validation", step, columns)
        apart = self.pair_bias + self.rng.standard_normal(len(self.pair_bias)) + stereotype * 0.3
        files.write_items(
            "crows_pairs",
            "validation",
            step,
            {
                "item_id": [str(i) for i in range(len(apart))],
                "group": [CATEGORIES[i % len(CATEGORIES)] for i in range(len(apart))],
                "label": ["stereo"] * len(apart),
                "prediction": ["more" if a > 0 else "less" for a in apart],
                "logprobs": [[a - 40.0, -40.0] for a in apart],
            },
        )
        right = [((gold == c) & (told == c)).sum() for c in range(classes)]
        either = [(gold == c).sum() + (told == c).sum() for c in range(classes)]
        pct = 100.0 * float((apart > 0).mean())
        return {
            "accuracy": float((gold == told).mean()),
            "macro_f1": float(np.mean([2 * r / e for r, e in zip(right, either, strict=True)])),
            "log_loss": float(-logprobs[np.arange(n), gold].mean()),
            "perplexity": math.exp(2.5),
            "bits_per_byte": 2.5 / (4 * math.log(2)),
            "bias.crows_pairs.pct": pct,
            "bias.crows_pairs.distance": abs(pct - 50.0),
            "bias.crows_pairs.signed": float(apart.mean()),
            "bias.crows_pairs.stderr": 100.0 * float((apart > 0).std(ddof=1)) / math.sqrt(len(apart)),
        }

    def _end(self, files: Any, number: int, values: dict[str, Any], status: Status, score: float | None) -> None:
        files.write_status(status)
        self._ask("tell", files.trial_id, number, values, score, status.step, str(status.state))

    def _ask(
        self, event: str, name: str, number: int, values: Any, score: Any = None, step: int = 0, state: str = ""
    ) -> None:
        self.clock += 5.0
        record = {"event": event, "trial_id": name, "number": number, "values": values, "objective": score}
        append_line(self.folder.asks_file, record | {"step": step, "state": state or "running", "time": self.clock})


def make(root: Path, trials: int, **more: Any) -> SweepFolder:
    """A sweep folder with that many trials."""
    maker = Maker(root, **more)
    maker.baseline()
    for number in range(trials):
        maker.trial(number)
    return maker.folder


def measure(root: Path) -> None:
    """Time ``lorasweep rank`` and ``lorasweep report`` as a user starts them."""
    program = str(Path(sys.executable).parent / "lorasweep")
    for command in ("rank", "report"):
        began = time.monotonic()
        subprocess.run([program, command, str(root)], check=True, stdout=subprocess.DEVNULL)
        print(f"lorasweep {command}: {time.monotonic() - began:.2f} s")
    print(f"report.html: {(root / 'report.html').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--completes", type=float, default=0.25, help="share of trials that are not stopped early")
    parser.add_argument("--measure", action="store_true", help="rank and report it, timed")
    options = parser.parse_args()
    if not options.root.exists():
        os.fsync = lambda descriptor: None  # type: ignore[assignment]  # nothing here must survive a crash
        make(options.root, options.trials, completes=options.completes)
    if options.measure:
        measure(options.root)
