"""Shipped options in combination, through the command line and Ray: a sweep that ranks, and says so without noise."""

import csv
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from analysis.errors import LorasweepError
from analysis.folder import SweepFolder
from sweeps.compose import conf_tree
from sweeps.compose.compose import compose
from tests.sweeps import options
from tests.sweeps.driver.ray_nodes import RayCluster, ray_cluster

Run = Callable[[options.Choice, str], None]


@functools.cache
def covering_set() -> list[dict[str, str]]:
    return options.covering_set()


@pytest.fixture(scope="module")
def files(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> options.Files:
    return options.write_files(tiny_models, tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def ray() -> Iterator[RayCluster]:
    """One Ray for all sweeps, which join it: to start it is most of what such a sweep takes."""
    with ray_cluster(cpus=2, system_config={}) as running:
        yield running


@pytest.fixture(scope="module")
def run(ray: RayCluster, files: options.Files, lorasweep, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the sweep of a choice, looks at it with `rank` and `status`, and fails where one of them is not as it should
    be: exit status, standard error, a trial that failed, a ranking without a best trial."""
    command = lorasweep(tmp_path_factory.mktemp("options"), ray.environment)

    def sweep(choice: options.Choice, name: str) -> None:
        given = [*options.words(choice, files), f"sweep.name={name}", f"ray.address={ray.address}"]
        for words in (["run", *given], ["rank", f"runs/{name}"], ["status", f"runs/{name}"]):
            done = command(*words)
            said = f"lorasweep {' '.join(words)}\n{done.stdout}\n{done.stderr}"
            assert (done.returncode, done.stderr) == (0, ""), said
            assert "Traceback" not in done.stdout, said
        with SweepFolder(command.cwd / "runs" / name).leaderboard_file.open(newline="") as file:
            trials = [row for row in csv.DictReader(file) if row["kind"] == "trial"]
        assert {row["status"] for row in trials} <= {"completed", "stopped_early"}, trials
        assert trials[0]["status"] == "completed", trials
        assert float(trials[0]["objective"]) > float("-inf"), trials

    return sweep


@pytest.mark.parametrize("number", range(len(options.each_value())))
def test_each_shipped_option_works_in_some_sweep(number: int, run: Run) -> None:
    run(options.each_value()[number], f"value{number}")


@pytest.mark.heavy
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("space", options.factors()["space"])
def test_every_two_shipped_options_work_together(space: str, run: Run) -> None:
    for number, choice in enumerate(covering_set()):
        if choice["space"] == space:
            run(choice, f"pair{number}")


@pytest.mark.heavy
def test_the_covering_set_holds_every_pair() -> None:
    held = set().union(*map(options.pairs, covering_set()))
    assert options.allowed_pairs() <= held
    assert len(covering_set()) < 110


def test_every_option_is_a_value_or_left_out_for_a_reason() -> None:
    conf, values = conf_tree.groups(), options.factors()
    assert set(conf) == {*options.GROUPS, *options.OTHER_GROUPS}
    for group, why in options.OTHER_GROUPS.items():
        assert why != options.ONE_OPTION or len(conf[group]) == 1, f"{group} has several options now: make it a factor"
    for group in options.GROUPS:
        assert set(conf[group]) == {*values[group], *(it for name, it in options.LEFT_OUT if name == group)}
    assert {(name, it) for choice in options.each_value() for name, it in choice.items()} == {
        (name, it) for name, several in values.items() for it in several
    }


@pytest.mark.parametrize("number", range(len(options.refusals())))
def test_what_does_not_go_together_is_refused_with_what_to_do(number: int, files: options.Files) -> None:
    refusal = options.refusals()[number]
    choice = options.refused_by(refusal)
    with pytest.raises(LorasweepError) as refused:
        compose(options.words(choice, files))
    assert refusal.says in str(refused.value)
