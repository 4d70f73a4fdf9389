"""What measuring bias costs on SmolLM2, next to a training rung of the quickstart.

python -m tests.benchmarks.bias fast    # the fast tier, and a rung of the quickstart
python -m tests.benchmarks.bias full    # all of CrowS-Pairs, with its standard error
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from analysis.folder import TrialFolder
from sweeps.compose.compose import compose
from trainer.config import BiasConfig, EngineConfig
from trainer.device_cache import DeviceCache
from trainer.engines.packed_engine import PackedEngine
from trainer.evaluation.bias.items import load_bias
from trainer.evaluation.bias.score import bias_metrics, score_bias
from trainer.evaluation.evaluate import evaluate, label_logprobs


def main(tier: str) -> None:
    torch.set_num_threads(2)
    trial = compose(["experiment=quickstart"]).trial("t0000", {"optim.lr": 1e-3, "lora.rank": 8})
    materials = DeviceCache(torch.device("cpu"))
    base = materials.base(trial)
    if tier == "full":
        items = load_bias(BiasConfig(crows_pairs=1508, stereoset=0, swap=0), "label")
        tables, seconds = timed(lambda: score_bias(base, base.model, items, (), lambda rows: None, 32))
        print(f"CrowS-Pairs, 1,508 pairs: {seconds}", bias_metrics(tables, ()), flush=True)
        return
    trial = replace(trial, bias=BiasConfig())  # the fast tier
    validation = materials.validation(trial)
    parts = {
        "CrowS-Pairs": validation.bias.only("crows_pairs"),
        "StereoSet": validation.bias.only("stereoset"),
        "swap": validation.bias.only("swap"),
        "all three": validation.bias,
    }
    for name, items in parts.items():
        n = [len(part) for part in items.by_set.values()]
        tables, seconds = timed(
            lambda items=items: score_bias(
                base, base.model, items, validation.labels,
                lambda rows: label_logprobs(base, base.model, trial, validation.labels, rows), trial.eval.batch_size,
            )
        )  # fmt: skip
        print(f"{name} {n}: {seconds}", bias_metrics(tables, validation.labels), flush=True)
    alone = replace(trial, bias=BiasConfig(name="none", crows_pairs=0, stereoset=0, swap=0))
    plain = materials.validation(alone)
    _, scoring = timed(lambda: evaluate(base, base.model, alone, plain, plain.rung))
    print(f"scoring {len(plain.rung)} rows of a rung: {scoring}", flush=True)
    engine = PackedEngine(materials, lambda metrics: metrics["macro_f1"], EngineConfig(), slots=1)
    with tempfile.TemporaryDirectory() as folder:
        engine.admit(alone, TrialFolder(Path(folder)), None)
        for _ in alone.train.rungs:
            [event], seconds = timed(engine.advance)
            print(f"to the rung at step {event.row.step}: {seconds}, scoring included", flush=True)
            engine.proceed("t0000")


def timed(work):
    """The result, and wall and processor seconds: the second hold on a busy machine too."""
    began, used = time.monotonic(), time.process_time()
    result = work()
    return result, f"{time.monotonic() - began:.1f} s ({time.process_time() - used:.1f} CPU s)"


if __name__ == "__main__":
    main(sys.argv[1])
