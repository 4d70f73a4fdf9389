"""A user's own metrics: looked up, described, asked, and each way in which one can fail as a sentence."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.errors import ConfigError
from analysis.metrics import own_metrics
from trainer.answers.answer import Answer
from trainer.answers.own_metrics import OwnMetrics, completed, trial_answers, try_out, verify

ANSWERS = [
    Answer(f"validation-{i}", "Say hello.", "Hello there", text, 1, True, {"text": "Say hello.", "level": i})
    for i, text in enumerate(("Hello there", "", "No"))
]
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(body: str) -> Path:
        file = tmp_path / "mymetrics.py"
        file.write_text(body)
        return file

    return written


def asked(tmp_path: Path, given: Any, answers: list[Answer] = ANSWERS) -> tuple[dict[str, list[float]], dict[str, str]]:
    metrics = OwnMetrics(completed({"mine": given}, [tmp_path]))
    try:
        return metrics.columns(answers)
    finally:
        metrics.close()


def test_a_function_is_given_prompt_reference_answer_and_row_and_what_it_prints_is_not_its_answer(
    write: Write, tmp_path: Path
) -> None:
    (tmp_path / "helper.py").write_text("def level(row): return row['level']\n")
    write(
        "import helper\n"
        "def mine(prompt, reference, answer, row):\n"
        "    print('noise')\n"
        "    return helper.level(row) + (answer == reference) + 10 * len(prompt)\n"
    )
    assert asked(tmp_path, "mymetrics.mine") == ({"mine": [101.0, 101.0, 102.0]}, {})


def test_a_dictionary_gives_a_column_for_each_declared_figure_in_the_order_of_the_config(
    write: Write, tmp_path: Path
) -> None:
    write("def mine(prompt, reference, answer, row):\n    return {'long': len(answer), 'warm': 0.5}\n")
    entry = completed({"mine": {"function": "mymetrics.mine", "figures": {"warm": "high", "long": "low"}}}, [tmp_path])
    metrics = OwnMetrics(entry)
    assert metrics.columns(ANSWERS) == ({"mine.warm": [0.5] * 3, "mine.long": [11.0, 0.0, 2.0]}, {})
    metrics.close()
    rows = own_metrics(json.loads(json.dumps(entry)))
    assert {name: row.better for name, row in rows.items()} == {
        "generate.mine.warm": "high",
        "generate.mine.long": "low",
    }


def test_direction_and_range_come_from_the_decorator_and_the_config_replaces_them(write: Write, tmp_path: Path) -> None:
    write(
        "from trainer.answers.metric import metric\n"
        "@metric(better='low', range=(0, 4), timeout=3)\n"
        "def mine(prompt, reference, answer, row):\n    return 1\n"
    )
    of_decorator = own_metrics(completed({"mine": "mymetrics.mine"}, [tmp_path]))["generate.mine"]
    assert (of_decorator.better, of_decorator.range, of_decorator.own) == ("low", (0.0, 4.0), True)
    replaced = completed({"mine": {"function": "mymetrics.mine", "better": 2, "range": [0, None]}}, [tmp_path])
    assert replaced["mine"]["timeout"] == 3.0
    of_config = own_metrics(replaced)["generate.mine"]
    assert (of_config.better, of_config.range) == (2.0, (0.0, float("inf")))


FAULTS = {
    "raises": (
        "    return 1 / len(answer)",
        "mymetrics.mine raised ZeroDivisionError: division by zero (mymetrics.py, line 2) for item validation-1.",
    ),
    "exits": (
        "    raise SystemExit(3)",
        "raised SystemExit: 3 (mymetrics.py, line 2) for item validation-0, the first",
    ),
    "nan": ("    return float('nan')", "mymetrics.mine gave NaN: expected a number for item validation-0"),
    "text": ("    return 'yes'", "gave a str ('yes'): expected a number for item validation-0"),
    "nothing": ("    return None", "gave a NoneType (None): expected a number"),
    "figures": ("    return {'warm': 1}", "gave figures (warm), which must be declared (figures: [warm])"),
    "outside": ("    return 7", "gave 7, outside of its range (0 to 1)"),
    "hangs": (
        "    while answer == '': pass\n    return 0",
        "mymetrics.mine gave nothing for item validation-1 within 0.3 s (eval.metrics.mine.timeout).",
    ),
    "hangs in C, which holds the lock": (
        "    return 0 if answer else sum(1 for _ in [10 ** 10 ** 9])",
        "gave nothing for item validation-1 within 0.3 s",
    ),
    "crashes": (
        "    import os; answer or os.kill(os.getpid(), 11)\n    return 0",
        "mymetrics.mine ended its process at item validation-1 (ended by SIGSEGV",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_function_that_fails_costs_its_metric_a_reason(fault: str, write: Write, tmp_path: Path) -> None:
    body, sentence = FAULTS[fault]
    write(f"def mine(prompt, reference, answer, row):\n{body}\n")
    columns, missing = asked(tmp_path, {"function": "mymetrics.mine", "range": [0, 1], "timeout": 0.3})
    assert columns == {}
    assert sentence in missing["generate.mine"]


def test_after_a_hang_the_function_is_asked_again_in_a_new_process(write: Write, tmp_path: Path) -> None:
    write("def mine(prompt, reference, answer, row):\n    while not answer: pass\n    return 1\n")
    metrics = OwnMetrics(completed({"mine": {"function": "mymetrics.mine", "timeout": 0.3}}, [tmp_path]))
    assert metrics.columns(ANSWERS)[1]
    assert metrics.columns(ANSWERS[:1]) == ({"mine": [1.0]}, {})
    metrics.close()


REFUSED = {
    "no such file": ("other.mine", "there is no other.py in"),
    "no such function": ("mymetrics.mime", "it is not there"),
    "a near name": ("mymetrics.mime", "Did you mean 'mine'?"),
    "no function": ("mymetrics", "expected module.function"),
    "a built-in name": ("", "eval.metrics.exact_match: generate.exact_match is a figure that lorasweep has itself"),
    "a key": ({"function": "mymetrics.mine", "beter": "low"}, "eval.metrics.mine.beter: there is no such key. Did you"),
    "a direction": ({"function": "mymetrics.mine", "better": "up"}, "expected high, low, or a value to be near to"),
    "a range": ({"function": "mymetrics.mine", "range": [1, 0]}, "the lowest value is not below the highest"),
    "both": ({"function": "mymetrics.mine", "command": "x"}, "expected either function (module.function) or command"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_where_the_sweep_is_composed(case: str, write: Write, tmp_path: Path) -> None:
    write("def mine(prompt, reference, answer, row):\n    return 1\n")
    given, sentence = REFUSED[case]
    name = "exact_match" if case == "a built-in name" else "mine"
    with pytest.raises(ConfigError) as error:
        completed({name: given or "mymetrics.mine"}, [tmp_path])
    assert sentence in str(error.value)


IMPORTS = {
    "import nonesuch\n": "cannot be imported: ModuleNotFoundError: No module named 'nonesuch' (mymetrics.py, line 1)",
    "def mine(:\n": "cannot be imported: SyntaxError: invalid syntax (mymetrics.py, line 1)",
    "def mine(answer):\n    return 1\n": "it takes (answer): expected (prompt, reference, answer, row)",
    "mine = 3\n": "it is not a function there",
    "async def mine(prompt, reference, answer, row): return 1\n": "it is async or a generator",
    "import os; os._exit(4)\n": "ended its process while it was imported (ended with status 4)",
}


@pytest.mark.parametrize("body", IMPORTS)
def test_a_file_that_cannot_be_imported_is_refused_with_its_line(body: str, write: Write, tmp_path: Path) -> None:
    write(body)
    with pytest.raises(ConfigError) as error:
        completed({"mine": "mymetrics.mine"}, [tmp_path])
    assert str(error.value).startswith("eval.metrics.mine")
    assert IMPORTS[body] in str(error.value)


def test_a_file_that_differs_in_a_worker_is_refused_with_what_to_do(write: Write, tmp_path: Path) -> None:
    file = write("def mine(prompt, reference, answer, row):\n    return 1\n")
    entries = completed({"mine": "mymetrics.mine"}, [tmp_path])
    verify(entries)
    file.write_text(file.read_text().replace("1", "2"))
    with pytest.raises(ConfigError, match=r"is another one here .* Restore the file as it was, or start a new sweep"):
        verify(entries)
    file.unlink()
    with pytest.raises(ConfigError, match=r"neither .*mymetrics.py is there, nor a module of that name\. Put it on"):
        verify(entries)


def test_a_worker_without_the_file_takes_the_module_of_the_same_name_if_it_is_the_same(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("def mine(prompt, reference, answer, row):\n    return 1\n")
    entries = completed({"mine": "mymetrics.mine"}, [tmp_path])
    there = tmp_path / "elsewhere"
    there.mkdir()
    file.rename(there / file.name)
    monkeypatch.syspath_prepend(str(there))
    verify(entries)


def test_metrics_are_tried_on_three_answers_before_a_sweep(write: Write, tmp_path: Path) -> None:
    write("def mine(prompt, reference, answer, row):\n    return len(answer.split()) / len(answer)\n")
    entries = completed({"mine": "mymetrics.mine"}, [tmp_path])
    rows = [(f"row-{i}", "p", reference, {}) for i, reference in enumerate(("red", "green", "blue"))]
    answers = trial_answers(rows)
    assert [answer.text for answer in answers] == ["red", "", "red"]
    with pytest.raises(ConfigError, match=r"was tried on 3 rows .*, and mymetrics.mine raised ZeroDivisionError"):
        try_out(entries, answers)


SCORE = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps({{"value": {value}}}))
"""


def test_a_command_reads_and_writes_json_lines_in_order(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text(SCORE.format(value="len(asked['answer']) + asked['row']['level']"))
    given = {"command": f"{sys.executable} score.py", "better": "low"}
    assert asked(tmp_path, given) == ({"mine": [11.0, 1.0, 4.0]}, {})


COMMANDS = {
    "cat >/dev/null; sleep 60": "did not end within 1 s for 3 items (timeout).",
    "cat >/dev/null; echo oh no >&2; exit 3": "ended with status 3: oh no.",
    "cat >/dev/null; echo '{\"value\": 1}'": "wrote 1 lines for 3 items: expected one for each, in order.",
    "sed s/.*/hello/": "wrote line 1 that is not JSON: 'hello'. Expected {\"value\": 0.5}.",
    'sed \'s/.*/{"value": "a"}/\'': 'gave "a": expected a number for item validation-0',
    'sed \'s/.*/{"error": "no verb"}/\'': "raised no verb for item validation-0",
    "no_such_program": "ended with status 127: ",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_fails_costs_its_metric_a_reason(command: str, tmp_path: Path) -> None:
    columns, missing = asked(tmp_path, {"command": command, "timeout": 1})
    assert columns == {}
    assert missing["generate.mine"].startswith(f"`{command}` ")
    assert COMMANDS[command] in missing["generate.mine"]


def test_a_commands_script_that_changes_is_another_metric(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text(SCORE.format(value="1"))
    entries = completed({"mine": {"command": f"{sys.executable} score.py"}}, [tmp_path])
    (tmp_path / "score.py").write_text(SCORE.format(value="2"))
    with pytest.raises(ConfigError, match="is another one here"):
        verify(entries)


def test_keys_of_lorasweep_are_not_in_a_metrics_environment(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x")
    monkeypatch.setenv("MINE", "1")
    write(
        "import os\ndef mine(prompt, reference, answer, row):\n"
        "    return float('WANDB_API_KEY' in os.environ) + 2 * float('MINE' in os.environ)\n"
    )
    assert asked(tmp_path, "mymetrics.mine")[0] == {"mine": [2.0] * 3}


def test_nothing_is_left_behind_by_a_process_that_is_killed_while_its_metric_hangs(
    write: Write, tmp_path: Path
) -> None:
    write(
        "import subprocess\n"
        "def mine(prompt, reference, answer, row):\n"
        f"    beside = subprocess.Popen(['sleep', '300'])\n"
        f"    open({str(tmp_path / 'pids')!r}, 'w').write(f'{{__import__(\"os\").getpid()}} {{beside.pid}}\\n')\n"
        "    while True: pass\n"
    )
    entries = completed({"mine": {"function": "mymetrics.mine", "timeout": 300}}, [tmp_path])
    code = (
        "import json, sys\nfrom trainer.answers.answer import Answer\n"
        "from trainer.answers.own_metrics import OwnMetrics\n"
        "OwnMetrics(json.loads(sys.argv[1])).columns([Answer('a', 'p', 'r', 't', 1, True)])\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, json.dumps(entries)], env={**os.environ})
    told = tmp_path / "pids"
    while not (told.exists() and told.read_text().endswith("\n")):
        assert worker.poll() is None
        time.sleep(0.02)
    pids = [int(pid) for pid in told.read_text().split()]
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    while any(_runs(pid) for pid in pids):  # the test's time limit is the bound
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
