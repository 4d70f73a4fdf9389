"""Every shipped option, and few sweeps that together hold every pair of them.

The options are read from ``conf/``: one that is added there is in the set by itself. What a choice needs beside its
option (rows of its schema, small bias sets) is said here, and which choices do not go together, and why.
"""

import functools
import itertools
import json
import random
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeps.compose import conf_tree
from sweeps.config import BASELINES
from trainer.config import PRECISIONS, SCHEMAS

Choice = Mapping[str, str]  # factor → value, of all factors or of some

# Groups of which each option is a value.
GROUPS = ("objective", "sampler", "scheduler", "space", "engine", "task", "bias", "tracking")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }} : {{ message.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
ONE_OPTION = "it has but one option"
# Groups of which no option is chosen beside the default, and why.
OTHER_GROUPS = {
    "model": "they are weights to fetch: tiny models of three architectures stand for them",
    "data": "they are rows to fetch, or files: the formats are read in tests/trainer/data, the schemas are a factor",
    "experiment": "they are made of options of the other groups, with weights and rows to fetch",
    **dict.fromkeys(("lora", "optim", "train", "mitigation", "eval", "ray", "resources"), ONE_OPTION),
}
# Options that do not run here, and why.
LEFT_OUT = {
    ("tracking", "wandb"): "needs an account; tests/sweeps/tracking/test_wandb_online.py has a server of its own",
}


CONSTRAINED = ("fairness_constrained", "guarded")  # by the untuned model, which has to be among the baselines
ORDINARY = {"schema": "label", "scheduler": "fifo", "space": "learning_rate"}  # go with nearly everything
EXCHANGED = ("optimizer", "learning_rate")  # spaces of what may change while a trial trains


@functools.cache
def factors() -> dict[str, list[str]]:
    """Factor → its values."""
    conf = conf_tree.groups()
    return {
        **{name: [it for it in conf[name] if (name, it) not in LEFT_OUT] for name in GROUPS},
        "model": ["llama", "gpt2", "bert"],
        "schema": list(SCHEMAS),
        "baselines": ["default", "none", *BASELINES],
        "precision": ["auto", *PRECISIONS],
        "mitigation": ["none", "augment", "reweight"],
        "repeats": ["1", "2"],
    }


@dataclass(frozen=True)
class Refusal:
    """Choices that do not go together: one is refused where each named factor has one of these values.

    Attributes:
        factors: factor → the values.
        says: part of the sentence, which is what to do instead.
    """

    factors: Mapping[str, frozenset[str]]
    says: str

    def holds(self, choice: Choice) -> bool:
        """Whether a choice, of all factors or of some, is refused whatever the others are."""
        return all(choice.get(name) in values for name, values in self.factors.items())


def _refusal(says: str, **factors: Sequence[str]) -> Refusal:
    return Refusal({name: frozenset(values) for name, values in factors.items()}, says)


@functools.cache
def refusals() -> list[Refusal]:
    """What the composer refuses, and rightly: each makes no sense, whatever else is chosen."""
    values = factors()

    def but(factor: str, *names: str) -> list[str]:
        return [value for value in values[factor] if value not in names]

    without_labels = but("schema", "label")
    classifying = ({"task": ["classification"]}, {"task": ["auto"], "model": ["bert"]})
    completing = ({"task": ["completion"]}, {"task": ["auto"], "model": ["llama", "gpt2"]})
    return [
        _refusal("is an encoder, which cannot continue a text", model=["bert"], task=["completion"]),
        *(_refusal("which needs labels", **it, schema=without_labels) for it in classifying),
        *(_refusal("a classification head reads no prompt", **it, baselines=["few_shot"]) for it in classifying),
        *(_refusal("Leave it out, or use task=classification", **it, space=["classifier"]) for it in completing),
        _refusal("there are no labels", schema=without_labels, baselines=["majority", "linear", "frozen"]),
        _refusal("examples need rows of", schema=["text"], baselines=["few_shot", "retrieval"]),
        _refusal(
            "is not measured in this sweep", schema=without_labels, objective=but("objective", "balanced", "single")
        ),
        *(_refusal("to compare with", **it, objective=CONSTRAINED, baselines=["none"]) for it in completing),
        _refusal("choose space=optimizer", scheduler=["pbt"], space=but("space", *EXCHANGED, "precision")),
        _refusal(
            "choose space=optimizer", scheduler=["pbt"], space=["precision"], precision=["auto"]
        ),  # else it is fixed
        *(
            _refusal("mitigation.reweight=", schema=without_labels, **it)
            for it in ({"mitigation": ["reweight"]}, {"space": ["mitigation"]})
        ),
        _refusal("must be 1", scheduler=["pbt"], repeats=["2"]),
    ]


@dataclass(frozen=True)
class Files:
    """Folders of tiny models by name, and training and validation rows of each schema."""

    models: Mapping[str, Path]
    rows: Mapping[str, tuple[Path, Path]]


def write_files(models: Mapping[str, Path], folder: Path) -> Files:
    """Rows of each schema over the words of the tiny tokenizer (``tests/conftest.py``); labelled ones have a group."""
    chooser = random.Random(0)
    kinds = {"fruit": ("apple", "pear", "plum", "cherry"), "metal": ("iron", "copper", "zinc", "tin")}
    made: dict[str, set[str]] = {}

    def row(schema: str, number: int) -> dict[str, object]:
        label = sorted(kinds)[number % 2]
        while True:
            text = "the " + " and a ".join(chooser.choices(kinds[label], k=chooser.randint(2, 5)))
            if text not in made.setdefault(schema, set()):
                break
        made[schema].add(text)
        who = ("she", "he")[number // 2 % 2]  # what mitigation.augment swaps
        text = f"{text} and {who}"
        if schema == "label":
            return {"text": text, "label": label, "group": who}
        if schema == "completion":
            return {"prompt": text, "completion": f"is a {label}"}
        if schema == "chat":
            said = [{"role": "user", "content": text}, {"role": "assistant", "content": f"is a {label}"}]
            return {"messages": said}
        return {"text": text}

    rows = {}
    for schema in SCHEMAS:
        files = folder / f"{schema}_train.jsonl", folder / f"{schema}_validation.jsonl"
        for file, count in zip(files, (32, 16), strict=True):
            file.write_text("".join(json.dumps(row(schema, number)) + "\n" for number in range(count)))
        rows[schema] = files
    return Files({name: _with_chat_template(model, folder / name) for name, model in models.items()}, rows)


def _with_chat_template(model: Path, copy: Path) -> Path:
    shutil.copytree(model, copy)
    (copy / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return copy


def words(choice: Choice, files: Files) -> list[str]:
    """The overrides of a choice: a sweep of two trials of four steps, over as few items as still say something."""
    train, validation = files.rows[choice["schema"]]
    said = [f"{name}={choice[name]}" for name in GROUPS]
    said += ["model=local", f"model.path={files.models[choice['model']]}"]
    said += ["data=jsonl", f"data.train={train}", f"data.validation={validation}"]
    said += ["data.group=group"] if choice["schema"] == "label" else [f"data.schema={choice['schema']}"]
    said += ["train.max_steps=4", "train.rungs=[2,4]", "train.batch_size=4", "eval.rung_items=8", "search.trials=2"]
    if choice["bias"] != "none":
        said += ["bias.swap=8"]
        if not classifies(choice):
            said += ["bias.crows_pairs=12", "bias.stereoset=6", *(["bias.bbq=44"] * (choice["bias"] == "full"))]
    if choice["baselines"] != "default":
        named = {choice["baselines"]} - {"none"} | ({"zero_shot"} if choice["objective"] in CONSTRAINED else set())
        said += [f"baselines=[{','.join(sorted(named)) if choice['baselines'] != 'none' else ''}]"]
    said += [] if choice["precision"] == "auto" else [f"precision={choice['precision']}"]
    said += [] if choice["mitigation"] == "none" else [f"mitigation.{choice['mitigation']}=0.5"]
    return [*said, f"search.repeats={choice['repeats']}"]


def classifies(choice: Choice) -> bool:
    """Whether the trials train a head."""
    return choice["task"] == "classification" or (choice["task"] == "auto" and choice["model"] == "bert")


def pairs(choice: Choice) -> set[frozenset[tuple[str, str]]]:
    """Every two values of a choice."""
    return {frozenset(two) for two in itertools.combinations(sorted(choice.items()), 2)}


def allowed_pairs() -> set[frozenset[tuple[str, str]]]:
    """Every two values of different factors that some allowed choice holds."""
    items = {name: [(name, value) for value in values] for name, values in factors().items()}
    two = [itertools.product(items[one], items[other]) for one, other in itertools.combinations(items, 2)]
    every = {frozenset(pair) for pair in itertools.chain(*two)}
    return {pair for pair in every if _completed(dict(pair), {}, random.Random(0), set()) is not None}


def covering_set(seed: int = 0, tries: int = 12) -> list[dict[str, str]]:
    """Choices that together hold every pair that goes together, each pair at least once.

    Greedy, one choice at a time: of some that each begin with a pair that is not held yet and take, factor by factor in
    a random order, the value that adds most pairs, the one that adds most (Cohen et al. 1997, "The AETG system: an
    approach to testing based on combinatorial design", IEEE Transactions on Software Engineering 23, 437-444).

    Args:
        seed: the same gives the same set.
        tries: candidates for each choice.
    """
    chooser, missing = random.Random(seed), allowed_pairs()
    chosen: list[dict[str, str]] = []
    while missing:
        begins = sorted(sorted(pair) for pair in missing)
        common = Counter(item for pair in missing for item in pair)
        weights = {item: count / len(missing) for item, count in common.items()}  # decide between equals
        made = [_completed(dict(chooser.choice(begins)), weights, chooser, missing) for _ in range(tries)]
        chosen.append(max((it for it in made if it is not None), key=lambda it: len(pairs(it) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


def each_value(seed: int = 0, tries: int = 12) -> list[dict[str, str]]:
    """Few choices that together hold every value: hardly more than the largest factor has values."""
    chooser = random.Random(seed)
    missing = {(name, value) for name, several in factors().items() for value in several}
    chosen: list[dict[str, str]] = []
    while missing:
        begins, weights = sorted(missing), dict.fromkeys(missing, 1.0)
        made = [_completed(dict([chooser.choice(begins)]), weights, chooser, set()) for _ in range(tries)]
        chosen.append(max((it for it in made if it is not None), key=lambda it: len(missing & it.items())))
        missing -= chosen[-1].items()
    return chosen


def _completed(
    part: Choice,
    weights: Mapping[tuple[str, str], float],
    chooser: random.Random,
    missing: set[frozenset[tuple[str, str]]],
) -> dict[str, str] | None:
    """A whole choice with these values, that is not refused. None where there is none.

    Args:
        part: some factors' values.
        weights: of values, beside 1 for each pair of ``missing`` that one adds.
        chooser: of the order of the factors, and between equals.
        missing: pairs of which as many as possible are to be held.
    """
    if any(it.holds(part) for it in refusals()):
        return None
    fitting = {name: _fitting(part, name) for name in factors() if name not in part}
    if not fitting:
        return dict(part)
    if not all(fitting.values()):
        return None
    name = chooser.choice(list(fitting))

    def loss(value: str) -> tuple[float, float]:
        held = sum(frozenset(((name, value), other)) in missing for other in part.items())
        return -held - weights.get((name, value), 0.0), chooser.random()

    for value in sorted(fitting[name], key=loss):
        made = _completed({**part, name: value}, weights, chooser, missing)
        if made is not None:
            return made
    return None


def refused_by(refusal: Refusal) -> dict[str, str]:
    """A choice that this is the only reason to refuse, where there is one; ordinary values otherwise."""
    others = [it for it in refusals() if it is not refusal]
    ordinary = {name: values[0] for name, values in factors().items()} | ORDINARY
    named = [[(name, value) for value in factors()[name] if value in refusal.factors[name]] for name in refusal.factors]
    choices = [{**ordinary, **dict(part)} for part in itertools.product(*named)]
    return min(choices, key=lambda it: sum(other.holds(it) for other in others))


def _fitting(part: Choice, name: str) -> list[str]:
    """The values of a factor that go together with others'."""
    refused = [it for it in refusals() if name in it.factors]
    return [value for value in factors()[name] if not any(it.holds({**part, name: value}) for it in refused)]
