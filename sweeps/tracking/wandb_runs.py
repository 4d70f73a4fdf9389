"""The W&B side of tracking: the runs, and everything that imports, calls or waits for ``wandb``."""

import contextlib
import glob
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.folder import SweepFolder
from sweeps.process.installation import program, shell_path

log = logging.getLogger(__name__)

INIT_SECONDS = 10.0  # W&B's default is 90
_FALLEN_BACK = "-offline"  # ends the id of a run that was to be online and could not
FINISH_SECONDS = 10.0  # for the uploads of one run, at its end; W&B's default is without limit


class WandbRuns:
    """The runs of one sweep. Every method is called from one thread, and none raises."""

    def __init__(
        self, folder: SweepFolder, uid: str, mode: str, fixed: dict[str, Any], note: Callable[[str], None]
    ) -> None:
        self._folder, self._uid, self._mode, self._fixed, self._note = folder, uid, mode, fixed, note
        self._wandb: Any = None
        self._broken = False  # wandb cannot be used at all
        self._noted = False
        self._unsent = False  # an upload was given up
        self._runs: dict[str, Any] = {}

    def connect(self) -> None:
        """Import wandb and find out whether it is logged in and the server answers, without asking the user."""
        if self._wandb is not None or self._broken:
            return
        # Read when wandb and its service start. W&B's reports about itself need a network, and are none of ours.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # Tables wait for their upload beside the runs they belong to: the folder can be copied and synced.
        os.environ.setdefault("WANDB_DATA_DIR", str(self._folder.wandb_dir / "wandb" / "staging"))
        try:
            import wandb

            machine = wandb.setup(wandb.Settings(silent=True)).settings.mode
        except ImportError:
            self._broken = True
            self.say(
                "W&B is not installed: the trials are not tracked there. Results are in the sweep folder all the same."
            )
            return
        except Exception as error:
            self._broken = True
            self._trouble("W&B cannot be used, the trials are not tracked there", error)
            return
        self._wandb = wandb
        if self._mode == "online" and "WANDB_MODE" not in os.environ and machine in ("offline", "dryrun", "disabled"):
            self._mode = "disabled" if machine == "disabled" else "offline"  # `wandb offline` was run here
            self.say(f"W&B is set to {machine} on this machine (`wandb online` changes that).")
        if self._mode == "online":
            try:
                if not wandb.login(prompt=False, verify=True):
                    self._go_offline("not logged in (`wandb login`)")
            except Exception as error:
                self._go_offline(_line(error))

    def disconnect(self) -> None:
        """End the service process: only then is everything on disk."""
        if self._wandb is not None:
            with contextlib.suppress(Exception, SystemExit):
                self._wandb.teardown()
            self._wandb = None

    def start(self, name: str, job_type: str, config: dict[str, Any], tags: Sequence[str] = ()) -> None:
        self.connect()
        if self._broken or self._mode == "disabled" or name in self._runs:
            return
        try:
            try:
                self._runs[name] = self._init(name, self._run_id(name), job_type, config, tags)
            except Exception as error:
                if self._mode != "online":
                    raise
                log.warning("W&B: %s could not start online: %s", name, error)
                self._go_offline(_line(error))
                # W&B's service holds on to the id of a run that could not start.
                self._runs[name] = self._init(name, f"{self._uid}-{name}{_FALLEN_BACK}", job_type, config, tags)
            # One x axis for all: W&B's own step counts the calls, and starts again where a trial is resumed.
            self._runs[name].define_metric("step")
            self._runs[name].define_metric("*", step_metric="step")
        except Exception as error:
            self._runs.pop(name, None)
            self._trouble(f"W&B: {name} is not tracked", error)

    def log(self, name: str, row: dict[str, Any]) -> None:
        run = self._runs.get(name)
        if run is None:
            return
        try:
            run.log(row)
        except Exception as error:
            self._trouble(f"W&B: {name} is not tracked any further", error)
            del self._runs[name]
            with contextlib.suppress(Exception):
                run.finish(exit_code=1)

    def table(self, name: str, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table under ``key``. What cannot be logged is left out: the run goes on."""
        run = self._runs.get(name)
        if run is None or not rows:
            return
        try:
            run.log({key: self._wandb.Table(columns=list(columns), data=[list(row) for row in rows])})
        except Exception as error:
            self._trouble(f"W&B: the table {key} of {name} is not tracked", error)

    def charts(self, name: str, charts: Mapping[str, Mapping[str, Any]]) -> None:
        """Log Plotly figures, given as their JSON, by key."""
        run = self._runs.get(name)
        if run is None:
            return
        try:
            import plotly.graph_objects as go

            run.log({key: self._wandb.Plotly(go.Figure(figure)) for key, figure in charts.items()})
        except Exception as error:
            self._trouble(f"W&B: charts of {name} are not tracked", error)

    def artifact(
        self, name: str, artifact: str, kind: str, folder: Path, metadata: dict[str, Any], aliases: Sequence[str]
    ) -> None:
        """Log the files of a folder as a new version of an artifact. They are read where they lie, not copied."""
        run = self._runs.get(name)
        if run is None:
            return
        try:
            made = self._wandb.Artifact(artifact, kind, metadata=metadata)
            made.add_dir(str(folder), skip_cache=True, policy="mutable")
            run.log_artifact(made, aliases=list(aliases))
        except Exception as error:
            self._trouble(f"W&B: {folder} was not logged as an artifact", error)

    def finish(self, name: str, summary: dict[str, Any], exit_code: int) -> None:
        run = self._runs.pop(name, None)
        if run is None:
            return
        try:
            run.summary.update(summary)
            run.finish(exit_code=exit_code)
        except TimeoutError:  # finish_timeout: what was not uploaded is on disk
            self._unsent = True
            self._go_offline(f"{name} was not uploaded within {FINISH_SECONDS:.0f} s")
        except Exception as error:
            self._trouble(f"W&B: the end of {name} was not recorded", error)

    def waiting(self) -> bool:
        """Whether some run of this sweep, from now or from before, is on disk only."""
        files = (self._folder.wandb_dir / "wandb").glob("offline-run-*/*.wandb")
        return self._unsent or any(not file.with_name(f"{file.name}.synced").exists() for file in files)

    def sync_command(self) -> str:
        online = " --include-online" if self._unsent else ""
        return f"{program('wandb')} sync{online} {shell_path(self._folder.wandb_dir / 'wandb')}"

    def later(self) -> str:
        return f"Upload later with `{self.sync_command()}`."

    def _run_id(self, name: str) -> str:
        """The id under which a run was begun, here or in an earlier process: there is one run, however often it is."""
        kept = f"{self._uid}-{name}{_FALLEN_BACK}"
        begun = any((self._folder.wandb_dir / "wandb").glob(f"*-{glob.escape(kept)}"))
        return kept if begun else f"{self._uid}-{name}"

    def _init(self, name: str, run_id: str, job_type: str, config: dict[str, Any], tags: Sequence[str]) -> Any:
        settings = self._wandb.Settings(
            console="off",
            silent=True,
            symlink=False,
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
            # "Stop run" on W&B's page would otherwise send Ctrl-C to the whole sweep.
            stop_fn=lambda: self.say(f"W&B asks to stop {name}: a single trial cannot be stopped from there."),
            # What the driver's machine does says nothing about a trial; the package list alone costs 0.1 s a run.
            # The machine information also asks a cloud's metadata address.
            disable_git=True,
            disable_code=True,
            save_code=False,
            label_disable=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            # A killed driver loses at most this many seconds; W&B's default is 15.
            x_transaction_log_flush_interval=1.0,
        )
        where = self._folder.wandb_dir
        where.mkdir(parents=True, exist_ok=True)  # W&B writes to /tmp where its folder does not exist
        fixed = self._fixed | {"tags": (*self._fixed["tags"], *tags)}
        return self._wandb.init(
            **fixed,
            id=run_id,
            name=name,
            job_type=job_type,
            config=config,
            mode=self._mode,
            dir=str(where),
            resume="allow",
            reinit="create_new",
            settings=settings,
        )

    def _go_offline(self, why: str) -> None:
        if self._mode == "online":
            self._mode = "offline"
            self.say(f"W&B: {why}; the runs are written offline. {self.later()}")

    def _trouble(self, what: str, error: Exception) -> None:
        log.warning("%s: %s", what, error, exc_info=error)
        if not self._noted:
            self._noted = True
            self.say(f"{what} ({_line(error)}). Results are in the sweep folder all the same.")

    def say(self, text: str) -> None:
        with contextlib.suppress(Exception):  # the terminal may be gone
            self._note(text)


def _line(error: Exception) -> str:
    """The first line of an error's message, short."""
    lines = str(error).strip().splitlines()
    return (lines[0][:160] if lines else "") or type(error).__name__
