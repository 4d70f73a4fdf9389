"""The quick way to read many config files gives what YAML gives, or is not taken."""

import random

import pytest
import yaml

from analysis.searched_values import ConfigReader

PATHS = ["lora.rank", "lora.targets", "optim.lr", "precision", "task.prompt", "flag", "absent.path"]
BASE = {
    "trial_id": "t0000",
    "precision": "fp32",
    "lora": {"rank": 8, "targets": "attention", "modules": ["a", "b"]},
    "optim": {"lr": 3e-4, "warmup": None},
    "task": {"prompt": "{text}\n\nLabel:"},
    "flag": True,
}


def expected(content: bytes) -> dict[str, object]:
    parsed, found = yaml.safe_load(content), {}
    for path in PATHS:
        at = parsed
        for part in path.split("."):
            at = at.get(part, KeyError) if isinstance(at, dict) else KeyError
        if at is not KeyError:
            found[path] = at
    return found


def test_files_of_one_dumper_are_read_as_yaml_reads_them() -> None:
    chooser, reader = random.Random(0), ConfigReader(PATHS)
    values = {
        "rank": [4, 8, 16, "none", None, True, "0o17", "1_000", ".5", "1e-3", 1e-3, -1, ".inf", "~", "y"],
        "targets": ["attention", "all_linear", "query+value", "a b", "a: b", "x #y", "", "'", "2026-01-01", "1:30"],
        "lr": [1e-4, 0.00042, 5e-05, 1.0, 3],
    }
    for i in range(300):
        config = {**BASE, "trial_id": f"t{i:04}", "precision": chooser.choice(["fp32", "nf4", "no"])}
        config["lora"] = {
            **BASE["lora"], "rank": chooser.choice(values["rank"]), "targets": chooser.choice(values["targets"]),
        }  # fmt: skip
        config["optim"] = {**BASE["optim"], "lr": chooser.choice(values["lr"])}
        content = yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()
        assert reader.read(content) == expected(content)


def test_plain_values_are_read_without_yaml() -> None:
    """The first file is read whole, and the others by the lines that differ."""
    reader, whole = ConfigReader(PATHS), 0
    for i in range(50):
        config = {**BASE, "trial_id": f"t{i:04}", "lora": {**BASE["lora"], "rank": i}, "optim": {"lr": 1e-5 * (i + 1)}}
        before = reader._lines
        content = yaml.safe_dump(config, sort_keys=False).encode()
        assert reader.read(content) == expected(content)
        whole += reader._lines is not before
    assert whole == 1


@pytest.mark.parametrize(
    "content",
    [
        b"precision: nf4\nlora:\n  rank: 8\n  more: |\n    rank: 4\n",
        b"precision: nf4\nlora:\n  rank: 8\n  more: |\n    rank: 5\n",
        b"precision: nf4\nlora:\n  rank: 8\n  more: one\n    rank\n",
        b"precision: &a nf4\nlora: {rank: 16}\nflag: *a\nx: 1\n",
        b"precision: nf4\nlora:\n  rank: 16\n  more: |\n    rank: 4\n",
        b"- 1\n",
        b"",
        b"lora: 8",
    ],
)
def test_any_file_after_any_other_is_read_as_yaml_reads_it(content: bytes) -> None:
    others = [
        b"precision: nf4\nlora:\n  rank: 8\n  more: |\n    rank: 4\n",
        b"precision: fp32\nlora: {rank: 4}\nflag: no\nx: 1\n",
    ]
    for other in others:
        reader = ConfigReader(PATHS)
        reader.read(other)
        assert reader.read(content) == expected(content)


def test_a_value_that_reads_as_more_than_a_plain_one_is_left_to_yaml() -> None:
    reader = ConfigReader(["a", "b"])
    assert reader.read(b"a: one\nb: 2\n") == {"a": "one", "b": 2}
    for text in ("a: [1]\nb: 2\n", "a: 'x'\nb: 2\n", "a: |\nb: 2\n", "a: &x y\nb: 2\n", "a: one # more\nb: 2\n"):
        assert reader.read(text.encode()) == {k: v for k, v in yaml.safe_load(text).items() if k in ("a", "b")}
    with pytest.raises(yaml.YAMLError):
        reader.read(b"a: b: c\nb: 2\n")
