"""Code that a model wrote: what passes, and what it cannot do."""

import os
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from trainer.answers import code_tests
from trainer.answers.code_tests import code_in, isolation_note, passed, row_tests

linux = pytest.mark.skipif(sys.platform != "linux", reason="what Linux holds")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less patience than a sweep has."""
    monkeypatch.setattr(code_tests, "_LIMITS", code_tests._LIMITS | {"RLIMIT_CPU": 1})
    monkeypatch.setattr(code_tests, "SECONDS", 5.0)


def test_code_passes_where_its_tests_do() -> None:
    right = "Here:\n```python\ndef f(x):\n    return x + 1\n```\nAnd:\n```python\nf(1/0)\n```"
    answers = [right, "def f(x): return x + 1", "def f(x): return x", "def f(x) return", "", "def f(x):\n  raise Boom"]
    assert passed(answers, ["assert f(1) == 2\nassert f('é' and 2) == 3"] * 6) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "program",
    [
        "exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "import sys; sys.exit()",
        "quit = 1; import os; os.abort()",
    ],
)
def test_code_that_ends_the_process_before_its_tests_has_not_passed(program: str) -> None:
    assert passed([program], ["assert True"]) == [0.0]


def test_code_that_hangs_or_takes_too_much_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_tests, "SECONDS", 2.0)
    hanging = ["while True: pass", "import time; time.sleep(60)"]
    writing = ["with open('big', 'wb') as f:\n    for _ in range(40): f.write(b'x' * (1 << 20))"]
    assert passed([*hanging, *writing], ["assert True"] * 3) == [0.0] * 3


@linux
def test_memory_and_processes_have_limits() -> None:
    much = "import mmap\nx = mmap.mmap(-1, 2 << 30)"
    if os.geteuid() == 0 and not code_tests._isolation()[0]:
        programs = [much]  # the number of root's processes has none
    else:
        programs = [much, "import os\nfor _ in range(20):\n    if not os.fork(): os._exit(0)"]
    assert passed(programs, ["assert True"] * len(programs)) == [0.0] * len(programs)
    assert passed(["x = bytearray(64 << 20)"], ["assert len(x)"]) == [1.0]


def test_code_has_an_empty_folder_and_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORASWEEP_TEST_SECRET", "hush-4711")
    program = "import os, pathlib\nthere = os.listdir()\npathlib.Path('x').write_text('x')\nhere = os.getcwd()"
    tests = f"assert there == [] and here != {os.getcwd()!r}\nassert 'LORASWEEP_TEST_SECRET' not in os.environ"
    before = set(Path(tempfile.gettempdir()).glob("answer-*"))
    assert passed([program], [tests]) == [1.0]
    assert set(Path(tempfile.gettempdir()).glob("answer-*")) <= before


@linux
def test_in_namespaces_code_has_no_network_and_sees_no_environment_of_ours() -> None:
    if not code_tests._isolation()[1]:
        assert "user namespaces" in isolation_note()
        pytest.skip("this system allows no namespaces")
    assert "user namespaces" not in isolation_note()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), 1).close()
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"
        assert passed([program], [""]) == [0.0]
    program = f"open('/proc/{os.getpid()}/environ').read()"
    assert passed([program], [""]) == [0.0]
    assert passed([f"import os, signal\nos.kill({os.getpid()}, 0)"], [""]) == [0.0]


def test_where_namespaces_are_not_allowed_code_runs_and_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_tests, "_isolation", lambda: (False, False))
    assert passed(["x = 1", "x = 2"], ["assert x == 1"] * 2) == [1.0, 0.0]
    monkeypatch.setattr(code_tests, "_is_root", lambda: False)
    assert isolation_note().startswith("eval.run_code: this system lets no process leave its network")
    assert "root" not in isolation_note()
    monkeypatch.setattr(code_tests, "_isolation", lambda: (False, True))
    assert isolation_note() == ""
    monkeypatch.setattr(code_tests, "_is_root", lambda: True)
    assert isolation_note().startswith("eval.run_code: code that a model writes runs as root")
    monkeypatch.setattr(code_tests, "_isolation", lambda: (True, True))
    assert isolation_note() == ""


def test_where_code_and_its_tests_stand() -> None:
    assert code_in("```js\nx\n```\n```python\ny\n```") == "y\n"
    assert code_in("text\n```\nz\n```") == "z\n"
    assert code_in("x = 1") == "x = 1"
    row = {"a": "assert 1", "b": ["assert 1", "assert 2"], "c": '["assert 3", "assert 4"]', "d": None, "e": " "}
    assert [row_tests(row, column) for column in "abcdef"] == [
        "assert 1", "assert 1\nassert 2", "assert 3\nassert 4", "", "", "",
    ]  # fmt: skip
