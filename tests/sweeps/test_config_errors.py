"""What people get wrong: each is refused with the key, where it stands, and what to write instead."""

import pytest

from analysis.errors import ConfigError
from sweeps.compose.compose import compose

OVERRIDES = [
    # slips of Hydra's syntax
    ("lora.rank = 8", ["without spaces around '='", "lora.rank=8"]),
    ("lora.rank= 8", ["without spaces around '='", "lora.rank=8"]),
    ("lora.rank =8", ["without spaces around '='", "lora.rank=8"]),
    ("lora.rank", ["no value", "lora.rank=VALUE"]),
    ("lora.rank=", ["no value", "lora.rank=VALUE"]),
    ("lora.rank=4,8", ["lora.rank=choice(4,8)", "[4,8]"]),
    ("task.prompt={text}:)", ["'task.prompt={text}:)'", "Quote"]),
    ("train.rungs=[1,2", ["train.rungs=[1,2", "KEY=VALUE"]),
    ("lora.rank=glob(*)", ["choice(a,b)"]),
    ("lora.rank=range(4,4)", ["at least two values"]),
    ("optim.lr=tag(cold,interval(1,2))", ["log"]),
    ("~lora.rank", ["cannot be removed", "lora.rank=VALUE"]),
    ("~bias", ["bias", "fast, full, none"]),
    ("~sampler.sed", ["'sampler.sed'", "'sampler.seed'"]),
    ("hydra.run.dir=x", ["--config-dir"]),
    # names
    ("lora.ranks=4", ["'lora.ranks'", "'lora.rank'", "override 'lora.ranks=4'"]),
    ("+lora.ranks=4", ["'lora.ranks'", "'lora.rank'"]),
    ("lr=1e-3", ["'lr' is neither a config group nor a key"]),
    ("modle=smollm2", ["'modle'", "'model'"]),
    ("model=smolm2", ["model=smolm2", "'smollm2'", "Options of model: bert, "]),
    ("experiment=quikstart", ["'quickstart'"]),
    ("lora=16", ["Options of lora: default", "lora.rank="]),
    (
        "objective.terms.quality.metrics=accuracy",
        ["objective.terms.quality.metrics", "objective.terms.quality.metric'"],
    ),
    ("objective.terms.quality=3", ["objective.terms.quality=3", "keys below"]),
    ("data.topics.sci.med=3", ["data.topics={sci.med"]),
    # types and ranges
    ("lora.rank=2.5", ["lora.rank=2.5", "whole number", "override 'lora.rank=2.5'"]),
    ("lora.rank=x", ["lora.rank='x'", "whole number"]),
    ("lora.rank=null", ["lora.rank=null", "whole number"]),
    ("lora.rank=0", ["lora.rank=0", "at least 1", "override 'lora.rank=0'"]),
    ("optim.lr=-1", ["optim.lr=-1", "greater than 0"]),
    ("optim.lr=inf", ["optim.lr=inf"]),
    ("precision=nf5", ["nf5", "'nf4'"]),
    ("train.rungs=[8,x]", ["train.rungs[1]", "list of whole numbers"]),
    ("train.rungs=8", ["train.rungs=8", "list of whole numbers"]),
    ("seed=-1", ["seed=-1", "at least 0"]),
    ("search.trials=0", ["search.trials=0", "at least 1"]),
    ("resources.slots=two", ["resources.slots='two'", "auto"]),
    ("resources.slots=0", ["resources.slots=0", "at least 1"]),
    ("sweep.name=a/b", ["sweep.name='a/b'", "letters"]),
    ("baselines=[zeroshot]", ["'zeroshot'", "'zero_shot'"]),
    # interpolations
    ("lora.alpha_value=${lora.rnk}", ["lora.alpha_value", "'lora.rnk'", "'lora.rank'"]),
    ("lora.alpha_value=${twice:2}", ["lora.alpha_value", "twice"]),
    ('lora.alpha_value="${pick:${lora.alpha_rule},{a:1}}"', ["lora.alpha_value", "none of a"]),
    ("sampler.seed=${oc.env:SURELY_NOT_SET}", ["SURELY_NOT_SET", "sampler.seed"]),
    # keys that do not go together
    ("data=csv", ["data.train", "FILE.csv"]),
    ("model=local", ["model.path"]),
    ("model=hub", ["model.name"]),
    ("train.max_steps=48 train.rungs=[12,24]", ["train.rungs", "train.max_steps=48"]),
    ("train.rungs=[10,20,48]", ["at 40", "scheduler=fifo"]),
    ("train.accumulation=3", ["does not divide"]),
    ("engine=hf engine.kernel=bmm", ["engine.kernel=bmm", "engine=packed"]),
    ("engine=hf engine.cut_by_length=false", ["engine.cut_by_length=false", "only packs"]),
    ("engine=hf engine.pass_cost=64", ["engine.pass_cost=64", "only packs"]),
    ("engine=hf resources.slots=2", ["resources.slots=2", "engine=packed"]),
    ("task=classification bias.stereoset=10", ["StereoSet", "bias.stereoset=0", "bias=none"]),
    ("task=classification bias.pairs_file=x.csv", ["pairs file", "bias.pairs_file=null"]),
    ("objective.terms.quality.metric=macrof1", ["'macrof1'", "'macro_f1'"]),
    ("bias.crows_pairs=0", ["bias.crows_pairs.distance", "objective.terms.bias.weight=0"]),
    ("objective.terms.quality.range=[1,0]", ["objective.terms.quality.range", "lower first"]),
    ("objective.terms.quality.direction=target", ["objective.terms.quality", "target"]),
    (
        "objective=single objective.terms.quality.metric=log_loss objective.terms.quality.direction=max",
        ["objective.terms.quality.direction=max", "log_loss is better when lower", "Leave the direction out"],
    ),
    ("objective.terms.bias.direction=max", ["bias.crows_pairs.distance is better when lower", "override"]),
    ("objective.terms.quality={metric: bias.crows_pairs.pct, direction: min}", ["is best at 50"]),
    (
        "objective.terms.quality.metric=classes_predicted",
        ["classes_predicted: neither more nor less", "objective.terms.quality.direction=max"],
    ),
    ("objective.terms.quality.target=0.5", ["objective.terms.quality", "direction=max with target=0.5"]),
    (
        "objective=fairness_constrained objective.constraints.bias.metric=accuracy",
        ["its at_most=10.0 was written for bias.crows_pairs.distance", "constraints.bias.at_most too"],
    ),
    (
        "objective=guarded objective.constraints.capability.metric=accuracy",
        ["its margin=0.3 was written for bits_per_byte", "in the unit of accuracy"],
    ),
    ("objective.terms.quality.direction=up", ["objective.terms.quality.direction='up'", "max, min, target"]),
    ("objective=single objective.terms.quality.weight=0", ["objective.terms", "weight above 0"]),
    ("lora.rank=8 space.lora.rank.choices=[4]", ["'lora.rank=8'", "'space.lora.rank.choices=[4]'"]),
    # rates, class weights and start values: fixed, and searched
    ("optim.head_lr=1e-3", ["optim.head_lr=0.001", "trains no head", "task=classification"]),
    ("optim.head_ratio=choice(1.0,4.0)", ["optim.head_ratio=4", "trains no head", "the space holds optim.head_ratio)"]),
    ("space=classifier", ["optim.head_ratio=", "task=classification"]),
    ("task=classification space=classifier optim.head_lr=1e-3", ["optim.head_lr=0.001", "Give one"]),
    ("lora.init=orthogonal lora.rank=5", ["lora.init=orthogonal", "lora.rank=5", "even rank"]),
    ("lora.init=orthogonal lora.rank=choice(4,5)", ["lora.rank=5", "even rank", "the space holds lora.rank)"]),
    ("lora.init=choice(default,orthogonal) lora.rank=choice(4,5)", ["lora.rank=5", "lora.init and lora.rank"]),
    ("lora.init=pissa", ["lora.init='pissa'", "default, orthogonal"]),
    ("train.class_weight=ballanced", ["'balanced'"]),
    ("data.schema=text objective=single mitigation.reweight=0.5", ["no weight of its own", "Leave it at 0"]),
    ("data.schema=chat objective=single space=mitigation", ["neither labels nor groups", "data.group"]),
    ("data.schema=chat train.class_weight=choice(none,balanced)", ["no labels to weigh by", "data.schema=chat"]),
    # constraints
    ("+objective.constraints.x.metric=accuracy", ["objective.constraints.x", "either baseline", "got neither"]),
    ("+objective.constraints.x={metric: acuracy, at_least: 0.5}", ["x.metric='acuracy'", "'accuracy'", "x.enabled"]),
    ("+objective.constraints.x={metric: accuracy, atleast: 0.5}", ["x.atleast'", "x.at_least'"]),
    ("+objective.constraints.x={metric: accuracy, baseline: zero_shot, margin: -1}", ["margin=-1", "at least 0"]),
    ("objective=guarded baselines=[]", ["capability.baseline=zero_shot", "baselines=[]"]),
    # the space, through overrides (tests/sweeps/space/test_space.py has the rest)
    ("+space.lora.ranks.choices=[2]", ["'lora.ranks' is not a config path", "'lora.rank'", "override"]),
    ("space.optim.lr.low=0.1", ["space.optim.lr", "not below", "override 'space.optim.lr.low=0.1'"]),
    ("optim.lr=interval(0.01,0.001)", ["not below"]),
    ("optim.schedule=interval(1,2)", ["optim.schedule", "choices"]),
]


@pytest.mark.parametrize(("line", "words"), OVERRIDES, ids=[line for line, _ in OVERRIDES])
def test_a_wrong_override_is_explained(line, words):
    whole = ("train.rungs=[1,2", "+objective.constraints", "objective.terms.quality={")
    arguments = line.split(" ") if not line.startswith(whole) else [line]
    with pytest.raises(ConfigError) as caught:
        compose(arguments)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message
    assert "Hydra" not in message or "hydra." in line
    assert caught.value.exit_code == 2


FILES = [
    ("lora:\n\n  ranks: 3\n", ["'lora.ranks'", "'lora.rank'", "experiment/mine.yaml, line 4"]),
    ("lora:\n  rank: 3.5\n", ["lora.rank=3.5", "whole number", "experiment/mine.yaml, line 3"]),
    ("optim:\n  lr: -1\n", ["optim.lr=-1", "greater than 0", "experiment/mine.yaml, line 3"]),
    ("optim: 3\n", ["optim=3", "keys below it", "experiment/mine.yaml, line 2"]),
    ("lora: [3\n", ["not valid YAML", "experiment/mine.yaml"]),
    ("defaults:\n  - override /model: smolm2\n", ["model=smolm2", "'smollm2'", "experiment=mine"]),
    ("space:\n  lora:\n    rank: {chioces: [4]}\n", ["'chioces'", "'choices'", "experiment/mine.yaml, line 4"]),
    ("space:\n  lora:\n    dropot: {choices: [0.1]}\n", ["'lora.dropot'", "'lora.dropout'", "mine.yaml, line 4"]),
    ("search:\n  start_from:\n    - {lora.rank: 7}\n", ["start_from[0]", "lora.rank=7", "one of 4, 8, 16, 32"]),
]


@pytest.mark.parametrize(
    ("text", "words"), FILES, ids=[text.splitlines()[0] + str(i) for i, (text, _) in enumerate(FILES)]
)
def test_a_mistake_in_a_file_is_explained_with_file_and_line(text, words, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\n" + text)
    with pytest.raises(ConfigError) as caught:
        compose(["experiment=mine"], str(tmp_path))
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message


def test_an_experiment_without_its_package_line_is_explained(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("lora:\n  rank: 3\n")
    with pytest.raises(ConfigError, match="# @package _global_"):
        compose(["experiment=mine"], str(tmp_path))


def test_a_config_folder_that_cannot_be_used_is_explained(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        compose([], str(tmp_path / "nowhere"))
    (tmp_path / "mine.yaml").write_text("lora: {rank: 3}\n")
    with pytest.raises(ConfigError, match=r"experiment/mine\.yaml"):
        compose([], str(tmp_path))


def test_points_that_do_not_go_together_may_be_kept_away_by_a_constraint_or_a_condition():
    searched = ["lora.init=choice(default,orthogonal)", "lora.rank=choice(4,5)"]
    assert compose([*searched, "space_constraints=['lora.rank != 5 or lora.init == \"default\"']"]).space
    when = "+space.lora.init={choices:[default,orthogonal],when:{lora.rank:[4,8]}}"
    assert compose([when, "space.lora.rank.choices=[4,5,8]", "search.start_from=[]"]).space
