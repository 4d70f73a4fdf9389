"""The judge, against a server on the loopback address: both orders, ties, and each way in which a server fails."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import cohen_kappa_score

from analysis.errors import ConfigError, DataError
from trainer.answers.answer import Answer
from trainer.answers.judge import Calibration, Judge, verdict
from trainer.answers.judge_server import JudgeServer
from trainer.config import JudgeConfig

PROMPT = "{prompt}|{first}|{second}"


class Server:
    """An OpenAI-compatible server whose replies a test decides."""

    def __init__(self, reply: Callable[[str, str, str], Any]):
        self.asked: list[dict[str, Any]] = []
        self.headers: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(body)
                outer.headers.append(self.headers["Authorization"])
                said = reply(*body["messages"][0]["content"].split("|"))
                status, content = said if isinstance(said, tuple) else (200, said)
                made = {"choices": [{"message": {"role": "assistant", "content": content}}]}
                self.send_response(status)
                self.end_headers()
                self.wfile.write(content if isinstance(content, bytes) else json.dumps(made).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[Server, Judge]]]:
    servers: list[Server] = []

    def started(reply: Callable[[str, str, str], Any], **keys: Any) -> tuple[Server, Judge]:
        servers.append(Server(reply))
        settings = JudgeConfig(server=servers[-1].url, model="m", prompt=PROMPT, **{"timeout": 5.0, **keys})
        return servers[-1], Judge(settings, JudgeServer(settings, pause=0.0).ask)

    yield started
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def answers(*texts: str) -> list[Answer]:
    return [Answer(f"validation-{i}", "p", "good", text, 1, True) for i, text in enumerate(texts)]


def longer(prompt: str, first: str, second: str) -> str:
    return "tie" if len(first) == len(second) else "1" if len(first) > len(second) else "Answer 2"


def test_both_orders_are_asked_and_win_tie_and_loss_are_values(serve: Any) -> None:
    server, judge = serve(longer)
    columns, missing = judge.judged(answers("better", "good", "same", "no"), ["good", "good", "word", "good"])
    assert (columns["judge"], missing) == ([1.0, 0.5, 0.5, 0.0], {})
    assert columns["judge_consistent"] == [1.0] * 4
    assert sorted(it["messages"][0]["content"] for it in server.asked) == sorted(
        ["p|better|good", "p|good|better", "p|same|word", "p|word|same", "p|no|good", "p|good|no"]
    )  # equal texts need no judge
    assert {it["temperature"] for it in server.asked} == {0}


def test_a_judge_that_prefers_a_place_gives_ties_and_its_consistency_tells_it(serve: Any) -> None:
    _, judge = serve(lambda prompt, first, second: "[[A]]")
    columns, _ = judge.judged(answers("better", "no"), ["good", "good"])
    assert columns["judge"] == [0.5, 0.5]
    assert columns["judge_consistent"] == [0.0, 0.0]


def test_what_was_judged_is_not_asked_again(serve: Any) -> None:
    server, judge = serve(longer)
    first = judge.judged(answers("better"), ["good"])
    assert judge.judged(answers("better"), ["good"]) == first
    assert len(server.asked) == 2


FAULTS: dict[str, tuple[Callable[[str, str, str], Any], str]] = {
    "slow": (lambda *_: time.sleep(1.0) or "1", "gave no reply within 0.2 s (eval.judge.timeout)"),
    "broken": (lambda *_: (500, "x"), "answered with HTTP status 500 (Internal Server Error)"),
    "refuses": (lambda *_: (401, "x"), "answered with HTTP status 401 (Unauthorized)"),
    "no completion": (lambda *_: (200, b"<html>"), "answered with something that is no chat completion"),
    "nonsense": (lambda *_: "I like turtles.", "gave no verdict for 2 of 2 items, such as 'I like turtles.'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_fails_costs_the_figure_a_reason(fault: str, serve: Any) -> None:
    reply, sentence = FAULTS[fault]
    server, judge = serve(reply, timeout=0.2)
    columns, missing = judge.judged(answers("better", "no"), ["good", "good"])
    assert columns == {}
    assert missing["generate.judge"] == f"the judge (m at {server.url}) {sentence}."
    assert len(server.asked) == {"slow": 8, "broken": 12}.get(fault, 4)  # attempts have a limit


def test_a_server_that_is_gone_is_not_asked_for_ever(serve: Any) -> None:
    server, judge = serve(longer)
    server.http.shutdown()
    server.http.server_close()
    _, missing = judge.judged(answers(*map(str, range(500))), ["good"] * 500)
    assert "could not be reached (Connection refused)" in missing["generate.judge"]


def test_a_server_that_recovers_is_asked_again(serve: Any) -> None:
    calls: list[int] = []

    def reply(*texts: str) -> Any:
        calls.append(1)
        return (503, "x") if len(calls) < 3 else longer(*texts)

    _, judge = serve(reply)
    assert judge.judged(answers("better"), ["good"])[0]["judge"] == [1.0]


def test_a_few_replies_that_are_no_verdict_are_ties_and_are_counted(serve: Any) -> None:
    _, judge = serve(lambda p, a, b: "hm" if "odd" in (a, b) else longer(p, a, b))
    columns, _ = judge.judged(answers("odd", *["better"] * 19), ["good"] * 20)
    assert columns["judge"] == [0.5] + [1.0] * 19
    assert columns["judge_parsed"] == [0.0] + [1.0] * 19


def test_the_key_is_sent_and_never_told(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-hidden")
    server, judge = serve(lambda *_: (403, "x"), key_variable="JUDGE_KEY")
    _, missing = judge.judged(answers("better"), ["good"])
    assert server.headers[0] == "Bearer sk-hidden"
    assert "sk-hidden" not in str(missing)
    with pytest.raises(ConfigError, match="NO_KEY: this environment variable is not set"):
        serve(longer, key_variable="NO_KEY")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("1", "first"), ("Answer 2.", "second"), ("**Tie**", "tie"), ("[[B]]", "second"), ("[[C]]", "tie"),
        ("A", "first"), ("<think>2 is long</think> 1", "first"), ("2 is long</think> 1", "first"),
        ("<think>2 is", None), ("Answer 1 is better", "first"),
        ("Both are right.\nVerdict: 2", "second"), ("Response A gives the source, so it wins.", "first"),
        ("They are equally good.", "tie"), ("Answer 1 is worse than answer 2", None), ("", None), ("12", None),
        ("I like turtles.", None), ("[[D]]", None),
    ],
)  # fmt: skip
def test_verdicts_are_read_from_replies(reply: str, expected: str | None) -> None:
    assert verdict(reply) == expected


def test_agreement_with_people_is_measured_on_a_calibration_set(serve: Any, tmp_path: Path) -> None:
    file = tmp_path / "people.jsonl"
    people = [("aaa", "b", "first"), ("a", "bbb", "second"), ("aa", "bb", "tie"), ("aaa", "b", "second")]
    rows = [{"prompt": f"p{i}", "first": a, "second": b, "better": c} for i, (a, b, c) in enumerate(people)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, judge = serve(longer, calibration=str(file))
    found = judge.calibrated()
    kappa = cohen_kappa_score([c for _, _, c in people], ["first", "second", "tie", "first"])
    assert (found.n, found.agreement, found.consistency) == (4, 0.75, 1.0)
    assert found.kappa == pytest.approx(kappa)
    assert found.sentence == f"agrees with people on 75% of 4 pairs, kappa {kappa:.2f}"
    file.write_text('{"prompt": "p", "first": "a", "second": "b", "better": "left"}\n')
    with pytest.raises(DataError, match=r"line 1: better='left': expected first, second or tie"):
        judge.calibrated()


def test_without_a_calibration_set_a_judge_is_not_calibrated(serve: Any) -> None:
    assert serve(longer)[1].calibrated() == Calibration()
    assert Calibration().sentence == "not calibrated"


def test_a_prompt_without_its_placeholders_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval.judge.prompt: lacks \{second\}"):
        Judge(JudgeConfig(server="http://x", prompt="{prompt} {first}"), lambda prompts: [])
