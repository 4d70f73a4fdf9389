"""The console script: routing, exit codes, messages, and what it does not import."""

import errno
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml

from analysis import errors
from analysis.errors import DataError, LorasweepError
from analysis.folder import MetricsRow, State, Status, SweepFolder, atomic_write
from sweeps import cli
from sweeps.compose.compose import compose
from sweeps.compose.conf_tree import groups

PROBE = """
import sys
from sweeps.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
loaded = [m for m in ("torch", "ray", "transformers", "pandas", "optuna", "wandb", "hydra") if m in sys.modules]
print("LOADED", *loaded, file=sys.stderr)
sys.exit(code)
"""

SERVERS_END = """
from concurrent import futures
from sweeps.cli import main
main(["--help"])
import grpc
class Echo(grpc.GenericRpcHandler):
    def service(self, call):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)
for _ in range(100):
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=(Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ask = grpc.insecure_channel(f"127.0.0.1:{port}").unary_unary("/a/b")
    ask(b"", timeout=10)
    under_way = ask.future(b"", timeout=3)
    server.stop(0).wait(10)
"""


def loaded_by(*arguments: str) -> tuple[int, list[str]]:
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.rsplit("LOADED", 1)[1].split()


@pytest.fixture
def called(monkeypatch):
    """Stand-ins for the modules that do the work; the list of calls they got."""
    calls = []

    def stand_in(module: str, function: str, result):
        def call(*args, **kwargs):
            calls.append((function, args, kwargs))
            if isinstance(result, BaseException):
                raise result
            return result

        fake = types.ModuleType(module)
        setattr(fake, function, call)
        monkeypatch.setitem(sys.modules, module, fake)
        return fake

    fake = stand_in("sweeps.run", "run_sweep", 0)
    fake.resume_sweep = lambda *args, **kwargs: calls.append(("resume_sweep", args, kwargs)) or 0
    stand_in("sweeps.single_trial", "run_trial", 0)
    stand_in("sweeps.export", "export", None)
    monkeypatch.setattr("sweeps.process.installation.package_root", lambda: "")
    return types.SimpleNamespace(calls=calls, stand_in=stand_in)


def test_help_imports_nothing_heavy():
    assert loaded_by("--help") == (0, [])
    assert loaded_by("run", "--help") == (0, [])


def test_composing_and_refusing_import_hydra_and_nothing_heavier():
    assert loaded_by("run", "experiment=quickstart", "--cfg", "job") == (0, ["hydra"])
    assert loaded_by("run", "+space.lora.ranks.choices=[2]") == (2, ["hydra"])


def test_grpc_does_not_tell_the_terminal_of_servers_that_end():
    done = subprocess.run([sys.executable, "-c", SERVERS_END], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_cfg_job_prints_yaml_and_runs_nothing(called, capsys):
    assert cli.main(["run", "experiment=quickstart", "--cfg", "job", "search.trials=3"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["search"]["trials"] == 3
    assert called.calls == []


def test_run_hands_over_what_was_composed(called):
    assert cli.main(["run", "search.trials=3", "--quiet", "sweep.name=x"]) == 0
    [(name, (composed,), options)] = called.calls
    options.pop("forks")  # a process to fork workers from, where the machine has no GPU
    assert (name, options) == ("run_sweep", {"view": "quiet"})
    assert (composed.config.search.trials, composed.config.sweep.name) == (3, "x")


def test_the_other_commands_hand_over_their_arguments(called):
    cli.main(["trial", "lora.rank=2"])
    cli.main(["resume", "runs/x", "search.trials=9", "--quiet"])
    cli.main(["export", "runs/x", "t0001", "--to", "out", "--merge"])
    cli.main(["export", "runs/x", "--to", "out"])
    assert called.calls[0][1][0].config.lora.rank == 2
    assert called.calls[1:] == [
        ("resume_sweep", ("runs/x", ["search.trials=9"]), {"view": "quiet", "own_code": False}),
        ("export", ("runs/x", "t0001", "out", True), {}),
        ("export", ("runs/x", None, "out", False), {}),
    ]


def sweep_with_two_trials(root: Path) -> SweepFolder:
    """A finished sweep: t0000 is more accurate, t0001 has the better macro-F1, which is the objective."""
    folder = SweepFolder(root)
    config = compose(["objective=single", "sweep.name=x"]).resolved()
    atomic_write(folder.sweep_file, yaml.safe_dump({"config": config, "space": {"lora.rank": {}}}))
    for trial_id, accuracy, macro_f1 in (("t0000", 0.9, 0.5), ("t0001", 0.8, 0.7)):
        trial = folder.trial(trial_id)
        atomic_write(trial.config_file, yaml.safe_dump({"lora": {"rank": 8}}))
        metrics = {"accuracy": accuracy, "macro_f1": macro_f1}
        trial.append_metrics(MetricsRow(trial_id, 8, 100, 1.0, final=True, n_items=10, metrics=metrics))
        trial.write_status(Status(State.COMPLETED, "", 8))
    return folder


def test_rank_prints_the_leaderboard_by_the_objective_and_writes_it(tmp_path, capsys):
    folder = sweep_with_two_trials(tmp_path / "x")
    assert cli.main(["rank", str(folder.root)]) == 0
    printed = capsys.readouterr().out
    assert printed.index("t0001") < printed.index("t0000")
    assert folder.leaderboard_file.exists()


def test_rank_of_a_folder_that_may_only_be_read_prints_all_the_same(tmp_path, capsys, monkeypatch):
    folder = sweep_with_two_trials(tmp_path / "x")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    assert cli.main(["rank", str(folder.root)]) == 0
    printed = capsys.readouterr()
    assert "t0001" in printed.out
    assert "leaderboard.csv: not written (Permission denied)." in printed.err


def test_rank_by_other_metrics_only_prints(tmp_path, capsys):
    folder = sweep_with_two_trials(tmp_path / "x")
    assert cli.main(["rank", str(folder.root), "--by", "accuracy", "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed.index("t0000") < printed.index("t0001")
    assert json.loads(printed)
    assert cli.main(["rank", str(folder.root), "--by", "acuracy"]) == 2
    assert "'accuracy'" in capsys.readouterr().err
    assert not folder.leaderboard_file.exists()


def test_a_folder_without_a_sweep_is_explained(tmp_path, capsys):
    assert cli.main(["rank", str(tmp_path)]) == 5
    assert "no sweep here" in capsys.readouterr().err


def test_the_exit_code_of_a_sweep_is_the_exit_code_of_the_command(called):
    called.stand_in("sweeps.run", "run_sweep", 4)
    assert cli.main(["run"]) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu"], ["'rnu'", "'run'"]),
        (["experiment=quickstart"], ["lorasweep run experiment=quickstart"]),
        (["run", "--quite"], ["--quite", "'--quiet'"]),
        (["run", "--multirun"], ["--multirun", "choice(4,8)", "for m in"]),
        (["run", "lora.rank=4,8", "-m"], ["-m", "choice(4,8)", "for m in"]),
        (["run", "--cfg"], ["--cfg", "expected one argument"]),
        (["run", "--cfg", "hydra"], ["--cfg", "'job'"]),
        (["run", "--resolve"], ["--cfg job"]),
        (["run", "lora.rank", "=", "8"], ["lora.rank=8"]),
        (["run", "space=learning_rate", "optim.lr=1e-3"], ["Nothing is searched", "lorasweep trial"]),
        (["rank"], ["RUN"]),
        (["export", "runs/x"], ["--to"]),
    ],
)
def test_a_wrong_command_line_exits_2_with_what_to_write(arguments, words, called, capsys):
    assert cli.main(arguments) == 2
    message = capsys.readouterr().err
    assert [word for word in words if word not in message] == [], message
    assert "Traceback" not in message
    assert called.calls == []


def test_no_arguments_show_the_commands_and_exit_2(capsys):
    assert cli.main([]) == 2
    assert "lorasweep run" in capsys.readouterr().out


def test_run_help_lists_groups_options_and_examples(capsys, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\n")
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--help", "--config-dir", str(tmp_path)])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert ", ".join(groups()["model"]) in text
    assert "mine" in text.split("  experiment ")[1].splitlines()[0]
    assert "lorasweep run experiment=quickstart --cfg job" in text
    assert "--quiet" in text


def test_errors_are_explained_without_a_traceback_unless_asked(called, capsys):
    called.stand_in("sweeps.run", "run_sweep", DataError("a.csv: no column 'text'."))
    assert cli.main(["run"]) == 3
    assert capsys.readouterr().err == "lorasweep: a.csv: no column 'text'.\n"
    assert cli.main(["run", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err
    assert cli.main(["--debug", "run"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_is_called_one_and_debug_shows_it(called, capsys):
    called.stand_in("sweeps.run", "run_sweep", ZeroDivisionError("oops"))
    assert cli.main(["run"]) == 1
    message = capsys.readouterr().err
    assert "ZeroDivisionError: oops" in message
    assert "Traceback" not in message
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", "--debug"])


def test_ctrl_c_exits_130(called):
    called.stand_in("sweeps.run", "run_sweep", KeyboardInterrupt())
    assert cli.main(["run"]) == 130


def test_exit_codes_are_those_of_the_errors_and_documented_in_help_and_manual(capsys):
    codes = cli.exit_codes()
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LorasweepError)]
    assert set(codes) == {0, 130} | {kind.exit_code for kind in kinds}
    cli.main(["--help"])
    shown = capsys.readouterr().out
    manual = (Path(__file__).parents[2] / "sweeps" / "README.md").read_text()
    for code, meaning in codes.items():
        assert f"{code}  {meaning}" in shown
        if code:
            assert f"| {code} | {meaning.split(' (')[0].split(';')[0]} |" in manual


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_debug_shows_the_traceback_of_any_command(command, capsys):
    assert cli.main([command, "--no-such-option", "--debug"]) == 2
    assert "Traceback" in (told := capsys.readouterr().err)
    assert "--no-such-option" in told
    assert cli.main([command, "--no-such-option"]) == 2
    assert "Traceback" not in capsys.readouterr().err
