"""Asks an OpenAI-compatible server (``POST …/chat/completions``), a few requests at a time and with limits."""

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from analysis.errors import ConfigError
from trainer.config import JudgeConfig

_AT_ONCE = 4  # requests
_ATTEMPTS = 3  # of a request; of one that takes too long, two
_FAILURES = 3  # requests that fail in a row, after which the others are not made
_LONGEST = 512  # tokens of a reply: some models think first
_NOT_ASKED = "was not asked any more"
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)  # HTTP status: another attempt may do


@dataclass(frozen=True)
class Reply:
    """What a judge said; or nothing, and why."""

    text: str = ""
    fault: str = ""


Ask = Callable[[Sequence[str]], list[Reply]]


class JudgeServer:
    """A server with a model that is asked.

    Args:
        settings: ``eval.judge``, with ``server``.
        pause: seconds before a second attempt; twice as many before the third.

    Raises:
        ConfigError: where the environment variable that holds the key is not set, or the address is none.
    """

    def __init__(self, settings: JudgeConfig, pause: float = 0.5):
        self._settings, self._pause = settings, pause
        self._failing = False  # at the end of the last scoring
        address = urllib.parse.urlsplit(str(settings.server))
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ConfigError(
                f"eval.judge.server={settings.server}: expected an address such as http://127.0.0.1:8000/v1."
            )
        name = settings.key_variable
        if name and name not in os.environ:
            raise ConfigError(
                f"eval.judge.key_variable={name}: this environment variable is not set on this machine. Set it where"
                " the command is run, and on each machine of a cluster."
            )
        self._key = os.environ[name] if name else ""
        near = address.hostname in ("localhost", "127.0.0.1", "::1")
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if near else []))

    def ask(self, prompts: Sequence[str]) -> list[Reply]:
        """A reply for each prompt, in order. A server that failed before is tried with one prompt first."""
        if self._failing and prompts and (fault := self._one(prompts[0], attempts=1).fault):
            return [Reply(fault=fault)] * len(prompts)
        failed = 0
        lock = threading.Lock()

        def one(prompt: str) -> Reply:
            nonlocal failed
            if failed >= _FAILURES:
                return Reply(fault=_NOT_ASKED)
            reply = self._one(prompt)
            with lock:
                failed = failed + 1 if reply.fault else 0
            return reply

        with ThreadPoolExecutor(_AT_ONCE, "judge") as pool:
            replies = list(pool.map(one, prompts))
        self._failing = failed >= _FAILURES
        why = next((reply.fault for reply in replies if reply.fault not in ("", _NOT_ASKED)), "")
        return [Reply(fault=why) if reply.fault else reply for reply in replies]

    def _one(self, prompt: str, attempts: int = _ATTEMPTS) -> Reply:
        fault = ""
        for attempt in range(attempts):
            if attempt:
                time.sleep(self._pause * 2 ** (attempt - 1))
            try:
                return self._asked(prompt)
            except urllib.error.HTTPError as error:
                fault = f"answered with HTTP status {error.code} ({error.reason})"
                error.close()
                if error.code not in _AGAIN:
                    break
            except (TimeoutError, urllib.error.URLError, http.client.HTTPException, OSError) as error:
                why = error.reason if isinstance(error, urllib.error.URLError) else error
                if isinstance(why, TimeoutError):
                    fault = f"gave no reply within {self._settings.timeout:g} s (eval.judge.timeout)"
                    if attempt:
                        break
                else:
                    text = getattr(why, "strerror", None) or str(why) or type(why).__name__
                    fault = f"could not be reached ({text})"
            except (ValueError, KeyError, IndexError, TypeError):
                fault = "answered with something that is no chat completion"
                break
        return Reply(fault=fault)

    def _asked(self, prompt: str) -> Reply:
        body = {
            "model": self._settings.model or "",
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": _LONGEST,
        }
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        url = f"{str(self._settings.server).rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with self._opener.open(request, timeout=self._settings.timeout) as answered:
            said = json.loads(answered.read())["choices"][0]["message"]["content"]
        if not isinstance(said, str):
            raise TypeError
        return Reply(said)
