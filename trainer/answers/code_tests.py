"""Whether code that a model wrote passes the tests of its row: run in a process of its own, with limits.

It runs only where a config says so (``eval.run_code``). What the process has: Python's standard library, an empty
folder, and limits of time, memory, file size, open files and processes. What it does not have: this process's
environment, and on Linux, where the system allows namespaces without privileges, a network, and processes other than
its own. A sweep that runs
as root runs it as nobody, where nobody can read Python. ``isolation_note`` says what the system does not allow.

That keeps accidents of a model that was not made to do harm; it is no jail. It may read what its user may read.
"""

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

CPU_SECONDS = 4
SECONDS = 8.0  # by the clock
MEMORY = 1 << 30  # bytes of address space; macOS does not hold it
FILE_SIZE = 1 << 24  # bytes
PROCESSES = 8  # threads count
OPEN_FILES = 64
_TOGETHER = 4
_NOBODY = 65534
_FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)

# What the process runs; what it is to do comes by its input. The token goes to the pipe once all tests have passed:
# code that ends the process before them has not passed.
_RUNNER = r"""
import ctypes, json, os, sys
todo = json.loads(sys.stdin.read())
sys.stdin = open(os.devnull)
if todo["nobody"]:
    os.setgroups([])
    os.setgid(todo["nobody"])
    os.setuid(todo["nobody"])
if todo["namespaces"]:
    libc = ctypes.CDLL(None, use_errno=True)
    new = 0x10000000 | 0x40000000 | 0x20000000 | 0x08000000  # user, network, processes, IPC: linux/sched.h
    if libc.unshare(new):
        sys.exit(3)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 255)
    libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG: with the process that waits, this one ends, and all below it
try:
    import resource
except ImportError:
    sys.exit(3)
for name, value in todo["limits"].items():
    try:
        hard = resource.getrlimit(getattr(resource, name))[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(getattr(resource, name), (value, value))
    except (AttributeError, OSError, ValueError):
        pass
def run(todo):
    space = {"__name__": "__answer__"}
    exec(compile(todo["program"], "answer", "exec"), space)
    exec(compile(todo["tests"], "tests", "exec"), space)
try:
    run(todo)
except BaseException:
    os._exit(1)
os.write(todo["pipe"], todo["token"].encode())
os._exit(0)
"""
_LIMITS = {
    "RLIMIT_CPU": CPU_SECONDS,
    "RLIMIT_AS": MEMORY,
    "RLIMIT_FSIZE": FILE_SIZE,
    "RLIMIT_CORE": 0,
    "RLIMIT_NOFILE": OPEN_FILES,
    "RLIMIT_NPROC": PROCESSES,
}


def row_tests(row: Mapping[str, Any], column: str) -> str:
    """The asserts of a row, as one program: a text, or a list of texts (also as JSON); empty where it has none.

    Args:
        row: its columns.
        column: that has them.
    """
    given = row.get(column)
    if isinstance(given, str) and given.lstrip().startswith("["):
        with contextlib.suppress(ValueError):
            given = json.loads(given)
    if isinstance(given, Sequence) and not isinstance(given, str):
        return "\n".join(str(line) for line in given if line is not None).strip()
    return str(given or "").strip()


def code_in(text: str) -> str:
    """The program in an answer: the first fence that says Python, else the first one, else the whole text."""
    fences = [(match.group(1).lower(), match.group(2)) for match in _FENCE.finditer(text)]
    python = [code for language, code in fences if language in ("python", "py", "python3")]
    return (python or [code for _, code in fences] or [text])[0]


def passed(answers: Sequence[str], tests: Sequence[str]) -> list[float]:
    """1 for each answer whose code runs through, and its tests after it, within the limits; else 0.

    Args:
        answers: what a model wrote.
        tests: of each, a program that raises where the code is wrong.
    """
    _isolation()  # found out once, before there are threads
    with ThreadPoolExecutor(min(_TOGETHER, os.cpu_count() or 1)) as pool:
        return [float(ok) for ok in pool.map(_passes, map(code_in, answers), tests)]


def isolation_note() -> str:
    """What this system does not allow in keeping code apart, in sentences; empty where it allows all."""
    nobody, namespaces = _isolation()
    notes = []
    if not namespaces:
        notes.append(
            "eval.run_code: this system lets no process leave its network and the processes of its user (user"
            " namespaces), so code that a model writes has both; limits of time and memory hold."
        )
    if not nobody and _is_root():
        notes.append(
            "eval.run_code: code that a model writes runs as root, since nobody else may read this Python: it may read"
            " root's files, and the number of its processes has no limit. Run the sweep as another user."
        )
    return " ".join(notes)


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _passes(program: str, tests: str) -> bool:
    return _run(program, tests, *_isolation())


@cache
def _isolation() -> tuple[bool, bool]:
    """Whether code runs as nobody, and in namespaces of its own: the most that works here."""
    for namespaces in (True, False) if sys.platform == "linux" else (False,):
        for nobody in (True, False) if _is_root() else (False,):
            if _run("import json, random", "assert json.loads('1') == 1", nobody, namespaces):
                return nobody, namespaces
    return False, False


def _run(program: str, tests: str, nobody: bool, namespaces: bool) -> bool:
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="answer-", ignore_cleanup_errors=True) as folder:
        if nobody:
            os.chown(folder, _NOBODY, _NOBODY)
        reads, writes = os.pipe()
        todo = {
            "program": program,
            "tests": tests,
            "nobody": _NOBODY if nobody else 0,
            "namespaces": namespaces,
            "limits": _LIMITS,
            "pipe": writes,
            "token": token,
        }
        environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder, "PYTHONHASHSEED": "0"}
        try:
            process = subprocess.Popen(
                # isolated, without site packages, without compiled files
                [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", _RUNNER],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=environment,
                pass_fds=(writes,),
                start_new_session=True,
            )
        finally:
            os.close(writes)
        try:
            process.communicate(json.dumps(todo).encode("utf-8"), timeout=SECONDS)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            pass
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)  # what it started too
            except (ProcessLookupError, PermissionError):
                process.kill()
            process.wait()
        os.set_blocking(reads, False)
        with os.fdopen(reads, "rb") as pipe:
            said = pipe.read(len(token) + 1) or b""
        return said == token.encode()
