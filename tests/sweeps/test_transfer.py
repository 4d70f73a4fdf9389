"""A sweep that starts from known points, or from another one's in a space that is then used up; the command line."""

import pytest

from analysis.folder import SweepFolder, read_lines
from sweeps.compose.compose import compose
from sweeps.search.scheduler import build_sampler
from sweeps.search.searcher import GuardedOptunaSearch, SearchPlan
from sweeps.space.dimensions import DefineByRun

SPACE = ["space=learning_rate", "optim.lr=choice(1e-3,2e-3,4e-3)", "lora.rank=4", "scheduler=fifo", "search.trials=5"]


def test_a_sweep_starts_from_another_ones_best_point_and_ends_when_its_space_is_used_up(
    lorasweep, tiny, tmp_path_factory
):
    command = lorasweep(tmp_path_factory.mktemp("transfer"))
    first = command("run", *tiny("llama", "sweep.name=small", "search.start_from=[]"), *SPACE)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "The space holds 3 points: the sweep ends after them, before search.trials=5." in first.stdout
    assert "The space is used up: each of its 3 points was handed out" in first.stdout
    small = SweepFolder(command.cwd / "runs" / "small")
    assert len(list(small.trials())) == 3

    more = ("sweep.name=large", "search.transfer_from=runs/small", "search.start_from=[]")
    second = command("run", *tiny("llama", *more), *SPACE)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "Transferred from runs/small: 3 trials, their learning rates times 1 for hidden size" in second.stdout
    assert "Transfer from runs/small: only 3 trials are near" in " ".join(second.stdout.split())
    large = SweepFolder(command.cwd / "runs" / "large")
    kept = list(read_lines(large.transfer_file))
    asked = [line["values"] for line in read_lines(large.asks_file) if line["event"] == "ask"]
    assert asked == [line["values"] for line in kept]


@pytest.mark.heavy
def test_trials_after_known_points_are_drawn_at_random_before_the_sampler_models_any_after_a_resume_too(
    lorasweep, tiny, tmp_path_factory, tmp_path
):
    command = lorasweep(tmp_path_factory.mktemp("known"))
    points = "search.start_from=[{optim.lr: 1e-3}, {optim.lr: 2e-3}]"
    words = tiny("llama", "space=learning_rate", "lora.rank=4", "scheduler=fifo", "search.trials=5", points)
    words += ["sampler.n_startup_trials=2", "ray.max_concurrent_trials=1"]
    for part in (("run", *words, "sweep.name=known", "search.trials=3"), ("resume", "runs/known", "search.trials=5")):
        done = command(*part)
        assert done.returncode == 0, done.stdout + done.stderr
    asks_file = SweepFolder(command.cwd / "runs" / "known").asks_file
    rates = [line["values"]["optim.lr"] for line in read_lines(asks_file) if line["event"] == "ask"]

    composed = compose(words)
    never = {**composed.config.sampler, "n_startup_trials": 100}  # models nothing
    plan = SearchPlan(5, 0, composed.start)
    search = GuardedOptunaSearch(DefineByRun(composed.space), build_sampler(never, 0), SweepFolder(tmp_path), plan)
    drawn = []
    for k in range(5):
        drawn.append(search.suggest(str(k))["values"]["optim.lr"])
        search.on_trial_complete(str(k), {"step": 1, "objective": 0.0, "state": "completed"})
    assert rates[:4] == drawn[:4]
    assert rates[4] != drawn[4]
