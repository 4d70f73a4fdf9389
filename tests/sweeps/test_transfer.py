"""A sweep that starts from another one's points, in a space that is then used up; through the command line."""

from analysis.folder import SweepFolder, read_lines

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
