"""`lorasweep doctor`: what it finds, what it advises, and its exit status."""

import http.server
import json
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from sweeps import cli
from sweeps.checks import doctor
from sweeps.checks.doctor import Finding


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def only(look: str) -> list[Finding]:
    return list(getattr(doctor, look)())


def test_everything_is_there_on_the_machine_that_runs_the_tests(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in told["checks"]}
    assert told["ok"] is True
    assert {"Python", "torch", "Ray", "W&B", "model hub", "cache", "disk", "machine", "precisions"} <= set(checks)
    assert checks["precisions"]["facts"]["fp32"] == ""
    assert checks["machine"]["facts"]["usable_cores"] > 0


def test_something_missing_is_told_with_what_to_do_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sweeps.store.manifest.LIBRARIES", ("torch", "no-such-library"))
    for slow in ("_precisions", "_torch", "_wandb", "_hub"):
        monkeypatch.setattr(doctor, slow, lambda: iter(()))
    assert cli.main(["doctor"]) == 7
    out = capsys.readouterr().out
    assert "✗ libraries       not installed: no-such-library" in out
    assert "Install them: make install" in out
    assert "before this is mended: libraries" in out


def test_a_look_that_raises_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(doctor, "_torch", broken)
    for slow in ("_precisions", "_wandb", "_hub"):
        monkeypatch.setattr(doctor, slow, lambda: iter(()))
    [finding] = [finding for finding in doctor.examine(Path.cwd()) if finding.name == "torch"]
    assert finding.state == "missing"
    assert "libcudart.so.12" in finding.found


def test_a_precision_that_fails_when_tried_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = {"fp32": "", "bf16": "", "int8": "trying it failed (x)", "nf4": ""}
    monkeypatch.setattr("trainer.models.base_model.available_precisions", lambda device: faults)
    monkeypatch.setattr("trainer.models.base_model.slow_precisions", lambda device: {"bf16": 40.0})
    [finding] = only("_precisions")
    assert (finding.state, finding.facts["int8"]) == ("note", "trying it failed (x)")
    assert "int8: trying it failed (x)" in finding.advice
    assert "int8" not in finding.found
    assert "bf16 works, but takes 40 times as long as fp32" in finding.advice


def test_a_ray_address_in_the_environment_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.1.2.3:6379")
    [finding] = only("_ray")
    assert finding.state == "note"
    assert "10.1.2.3:6379" in finding.found
    assert "do not follow it" in finding.advice


def test_a_ray_that_runs_here_is_found_by_its_processes() -> None:
    line = [sys.executable, "-c", "import time; time.sleep(60)", "raylet", "--gcs-address=127.0.0.9:6379"]
    with subprocess.Popen(line) as process:
        try:
            until = time.monotonic() + 10
            while "127.0.0.9:6379" not in doctor._running_rays() and time.monotonic() < until:
                time.sleep(0.05)
            assert "127.0.0.9:6379" in doctor._running_rays()
        finally:
            process.kill()


def test_offline_asks_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("the network was tried"))
    [finding] = only("_hub")
    assert (finding.state, finding.facts["offline"]) == ("ok", True)


class _Answers(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_HEAD(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize(("status", "state"), [(200, "ok"), (404, "ok"), (503, "note")])
def test_a_hub_that_answers_is_told_from_one_that_does_not(
    monkeypatch: pytest.MonkeyPatch, status: int, state: str
) -> None:
    monkeypatch.setattr(_Answers, "status", status)
    with http.server.HTTPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert [finding.state for finding in only("_hub")] == [state]
        server.shutdown()


def test_an_unreachable_hub_is_told_soon_and_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    [finding] = only("_hub")
    assert (finding.state, finding.facts["reached"]) == ("note", False)
    assert "model=smollm2" in finding.advice


def test_what_is_not_fetched_yet_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORASWEEP_CACHE", str(tmp_path / "cache"))
    [finding] = only("_cache")
    assert finding.facts["cached"] == []
    assert "smollm2" in finding.advice
    assert "lorasweep fetch" in finding.advice


def test_no_library_is_let_to_fetch_code_from_a_hub(tmp_path: Path) -> None:
    """bitsandbytes on a CPU with AVX512-BF16, and `kernels` installed: it is not asked, and nothing is said."""
    (tmp_path / "kernels.py").write_text("def get_kernel(*args, **options):\n    print('THE NETWORK WAS TRIED')\n")
    program = """
        import ctypes
        found = ctypes.CDLL.__getattr__
        def lookup(self, name):
            return (lambda: True) if name == "has_avx512bf16_cpu" else found(self, name)
        ctypes.CDLL.__getattr__ = lookup
        import trainer.models.lora
        import bitsandbytes.functional as functional
        assert functional.has_avx512bf16() is True
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={"PYTHONPATH": f"{tmp_path}:{Path(cli.__file__).parent.parent}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
