"""What orchestration costs a trial: whole sweeps through the real proxies and folders over a simulated engine.

    make bench-overhead        or: python tests/benchmarks/overhead.py [--rounds 3] [--tracking none wandb_offline] …

Prints the seconds of both sweeps and the marginal cost, (t_many - t_few) / (many - few): what starts once is left out.
Trials reach two rungs and end, eight at a time; ``tests/benchmarks/simulated.py`` says what is simulated.
"""

import argparse
import contextlib
import cProfile
import os
import statistics
import tempfile
import time
from pathlib import Path

from tests.benchmarks.simulated import SimulatedWorker, overrides


def sweep(trials: int, tracking: str, profile: str | None) -> tuple[float, float]:
    """Seconds of one sweep, and CPU seconds of the driver in it."""
    from sweeps.compose.compose import compose
    from sweeps.driver import tune_run
    from sweeps.run import run_sweep

    if profile:  # cProfile sees but one thread
        tune_run.TuneRun._fit = lambda self, tuner: tuner.fit()  # type: ignore[method-assign,assignment,return-value]
    with tempfile.TemporaryDirectory(prefix="bench-overhead-") as name:
        given = [f"tracking={tracking}", f"search.trials={trials}", "train.max_steps=8", "train.rungs=[2,8]"]
        given += ["scheduler=fifo", "resources.slots=8"]
        began, cpu = time.perf_counter(), time.process_time()
        with (
            contextlib.redirect_stdout(open(os.devnull, "w")),
            cProfile.Profile() if profile else contextlib.nullcontext() as profiled,
        ):
            status = run_sweep(compose([*overrides(Path(name)), *given]), view="quiet", worker=SimulatedWorker)
        seconds = time.perf_counter() - began, time.process_time() - cpu
        if profiled is not None and profile:
            profiled.dump_stats(profile)
    if status:
        raise SystemExit(f"the sweep ended with exit status {status}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=50)
    parser.add_argument("--many", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tracking", nargs="+", default=["none", "wandb_offline"])
    parser.add_argument("--profile", help="write the driver's cProfile of the larger sweep here")
    options = parser.parse_args()
    found: dict[str, list[float]] = {tracking: [] for tracking in options.tracking}
    for _ in range(options.rounds):
        for tracking in options.tracking:
            few, many = sweep(options.few, tracking, None), sweep(options.many, tracking, options.profile)
            marginal, cpu = ((b - a) / (options.many - options.few) for a, b in zip(few, many, strict=True))
            found[tracking].append(marginal)
            print(
                f"{tracking:14} {options.few} trials {few[0]:6.1f} s   {options.many} trials {many[0]:6.1f} s"
                f"   marginal {marginal:.3f} s a trial, {cpu:.3f} CPU s of them in the driver",
                flush=True,
            )
    if options.rounds > 1:
        for tracking, marginals in found.items():
            print(f"{tracking:14} median of {options.rounds}: {statistics.median(marginals):.3f} s a trial")


if __name__ == "__main__":
    main()
