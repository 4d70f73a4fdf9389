"""``search.transfer_from``: trials of a sweep over another model as points of this one."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.errors import ConfigError, FolderError
from analysis.folder import MetricsRow, State, Status, SweepFolder, append_line
from analysis.leaderboard.transfer import agreement_sentence, spearman
from analysis.objective import Objective
from analysis.rows import Row
from sweeps.search.transfer import distinct, keep, takes_prior, to_transfer, transferred
from sweeps.space.dimensions import Choices, Space, Uniform
from sweeps.space.known_points import BaseModel
from trainer.config import LoraSettings

SPACE: Space = {
    "lora.rank": Choices((8, 32)),
    "lora.alpha_rule": Choices(("fixed", "sqrt")),
    "optim.lr": Uniform(1e-4, 1e-2, log=True),
}
ACCURACY = Objective.from_config(
    {
        "name": "single",
        "rho": 0.0,
        "terms": {"quality": {"metric": "accuracy", "direction": "max", "range": [0.0, 1.0]}},
    }
)


def settings(given: Any) -> LoraSettings:
    rule = given.get("lora.alpha_rule", "fixed")
    return LoraSettings(
        rank=given.get("lora.rank", 8), alpha_rule=rule, alpha_value={"fixed": 16.0, "sqrt": 6.0, "ratio": 2.0}[rule]
    )


def small(root: Path, rates: list[tuple[float, float, State]]) -> str:
    """A sweep over MiniLM's width with alpha 32 at rank 16, whose trials have a learning rate and an accuracy."""
    folder = SweepFolder(root / "small")
    folder.root.mkdir(parents=True)
    config = {"model": {"source": "package", "package": "minilm"}, "task": {"name": "classification"}}
    folder.sweep_file.write_text(yaml.safe_dump({"space": {"optim.lr": {}}, "config": config}))
    for number, (lr, accuracy, state) in enumerate(rates):
        files = folder.trial(f"t{number:04d}")
        files.root.mkdir(parents=True)
        lora = {"rank": 16, "alpha_rule": "ratio", "alpha_value": 2.0}
        files.config_file.write_text(yaml.safe_dump({"lora": lora, "optim": {"lr": lr}}))
        files.write_status(Status(state, "", 8, ""))
        files.append_metrics(MetricsRow(files.trial_id, 8, 0, 0.0, False, 9, {"accuracy": accuracy}))
    return str(folder.root)


def test_points_are_converted_by_width_and_alpha_rule_the_best_completed_first(tmp_path: Path) -> None:
    rates = [
        (4e-3, 0.5, State.COMPLETED),
        (2e-3, 0.8, State.COMPLETED),
        (1e-3, 0.9, State.STOPPED_EARLY),
        (1e-3, 0.0, State.DIVERGED),
    ]
    run = small(tmp_path, rates)
    found, (note,) = transferred([run + "/"], SPACE, BaseModel(768, "bert"), ACCURACY, settings)
    assert [it.source for it in found] == [f"{run}/t0001", f"{run}/t0000", f"{run}/t0002"]
    factor = 2**-0.781  # twice as wide
    assert found[0].rate == pytest.approx(2e-3 * factor)
    assert found[0].values["lora.rank"] in (8, 32)
    alpha = {("sqrt", 8): 6 * 8**0.5, ("sqrt", 32): 6 * 32**0.5}[
        (found[0].values["lora.alpha_rule"], found[0].values["lora.rank"])
    ]
    assert found[0].values["optim.lr"] == pytest.approx(2e-3 * factor * 32 / alpha, rel=5e-3)
    assert "3 trials" in note
    assert "hidden size 384 → 768" in note
    (other, *_), (note,) = transferred([run], SPACE, BaseModel(), ACCURACY, settings)
    assert other.rate == pytest.approx(2e-3)
    assert "not known" in note


def test_of_several_seeds_the_mean_is_transferred_once(tmp_path: Path) -> None:
    run = small(tmp_path, [(2e-3, 0.9, State.COMPLETED), (4e-3, 0.6, State.COMPLETED), (2e-3, 0.9, State.COMPLETED)])
    trials = SweepFolder(Path(run)).trials_dir
    for name, accuracy, state in (("t0000.1", 0.2, State.COMPLETED), ("t0002.1", 0.0, State.DIVERGED)):
        shutil.copytree(trials / name.split(".")[0], trials / name)
        files = SweepFolder(Path(run)).trial(name)
        files.metrics_file.unlink()
        files.append_metrics(MetricsRow(name, 8, 0, 0.0, False, 9, {"accuracy": accuracy}))
        files.write_status(Status(state, "", 8, ""))
    found, _ = transferred([run], SPACE, BaseModel(), ACCURACY, settings)
    assert [(it.source, it.objective) for it in found] == [
        (f"{run}/t0001", pytest.approx(0.6)), (f"{run}/t0000", pytest.approx(0.55)),
    ]  # fmt: skip


def test_what_was_transferred_is_kept_so_that_a_resume_needs_no_old_folder(tmp_path: Path) -> None:
    run = small(tmp_path, [(2e-3, 0.8, State.COMPLETED), (4e-3, 0.5, State.COMPLETED)])
    found, _ = transferred([run], SPACE, BaseModel(), ACCURACY, settings)
    folder = SweepFolder(tmp_path / "new")
    (folder.root / "study").mkdir(parents=True)
    assert to_transfer(folder, [run]) == ([], [run])
    keep(folder, found)
    kept, missing = to_transfer(folder, [run, "runs/more"])
    assert missing == ["runs/more"]
    assert distinct(kept) == distinct(found) == [it.values for it in found]


def test_a_sweep_of_which_nothing_can_be_placed_and_a_space_without_a_rate_are_refused(tmp_path: Path) -> None:
    run = small(tmp_path, [(1.0, 0.8, State.COMPLETED)])
    with pytest.raises(ConfigError, match=r"no trial of .*small can be placed"):
        transferred([run], SPACE, BaseModel(), ACCURACY, settings)
    with pytest.raises(ConfigError, match=r"optim\.lr is not in the space"):
        transferred([run], {"lora.rank": SPACE["lora.rank"]}, BaseModel(), ACCURACY, settings)


def test_the_prior_fades() -> None:
    taken = [sum(takes_prior(seed, number) for seed in range(400)) / 400 for number in (3, 6, 30)]
    assert taken[0] == 1
    assert taken[1] == pytest.approx(0.5, abs=0.08)
    assert taken[2] == pytest.approx(0.1, abs=0.05)


def test_spearman_is_scipys_and_its_interval_holds_it() -> None:
    import numpy as np
    from scipy.stats import spearmanr

    a = np.random.default_rng(0).normal(size=30)
    b = a + np.random.default_rng(1).normal(size=30)
    rho, low, high = spearman([(float(x), float(y)) for x, y in zip(a, b, strict=True)])
    assert rho == pytest.approx(spearmanr(a, b).statistic)
    assert low < rho < high
    assert spearman([(1.0, k) for k in range(5)])[0] != spearman([(1.0, k) for k in range(5)])[0]  # NaN


def test_the_sweep_says_how_well_ranks_agreed(tmp_path: Path) -> None:
    run = small(tmp_path, [(10**-3.5 * 2**k, 0.1 * k, State.COMPLETED) for k in range(6)])
    found, _ = transferred([run], SPACE, BaseModel(), ACCURACY, settings)
    folder = SweepFolder(tmp_path / "new")
    (folder.root / "study").mkdir(parents=True)
    assert agreement_sentence(folder, []) == ""
    keep(folder, found)
    rows = []
    for number, it in enumerate(found):
        files = folder.trial(f"t{number:04d}")
        files.root.mkdir(parents=True)
        lora = {"rank": 16, "alpha_rule": "fixed", "alpha_value": 32.0}
        files.config_file.write_text(yaml.safe_dump({"lora": lora, "optim": {"lr": it.rate * 1.1}}))
        rows.append(Row("trial", files.trial_id, "completed", 8, objective=-it.objective))
    assert f"correlation of scores here and there is -1.00 (95 % interval -1.00 – -1.00, {len(rows)} trials)" in (
        agreement_sentence(folder, rows)
    )
    assert "only 3 trials are near" in agreement_sentence(folder, rows[:3])
    folder.trial("t0001").config_file.write_text("{lora: {rank: 16}, optim: {lr: 1e-3}}")
    append_line(folder.transfer_file, {"source": "damaged", "rank": 16, "objective": 0.5})
    assert f"{len(rows) - 1} trials)" in agreement_sentence(folder, rows)
    nothing = {"lora": {"rank": 0, "alpha_rule": "fixed", "alpha_value": 32.0}, "optim": {"lr": 0.0}}
    folder.trial("t0002").config_file.write_text(yaml.safe_dump(nothing))
    assert f"{len(rows) - 2} trials)" in agreement_sentence(folder, rows)


@pytest.mark.parametrize("config", ["{}", "{lora: {rank: many}}", "{lora: {rank: 8, alpha_rule: new}, optim: {lr: 1}}"])
def test_a_config_of_a_trial_that_is_none_and_a_damaged_line_are_named(tmp_path: Path, config: str) -> None:
    run = small(tmp_path, [(2e-3, 0.8, State.COMPLETED)])
    SweepFolder(Path(run)).trial("t0000").config_file.write_text(config)
    with pytest.raises(FolderError, match=r"t0000/.*: not a LoRA trial's config.*search\.transfer_from"):
        transferred([run], SPACE, BaseModel(), ACCURACY, settings)
    folder = SweepFolder(tmp_path / "new")
    (folder.root / "study").mkdir(parents=True)
    append_line(folder.transfer_file, {"source": "small/t0000", "rate": 1e-3})
    with pytest.raises(FolderError, match=r"transfer\.jsonl: a line is not what .* Remove the file"):
        to_transfer(folder, [run])
