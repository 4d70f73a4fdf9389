"""The W&B side of tracking: the runs, and everything that imports, calls or waits for ``wandb``."""

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.folder import SweepFolder
from sweeps.process.installation import program, shell_path
from sweeps.tracking.wandb_environment import set_aside
from sweeps.tracking.wandb_folders import WandbFolders, discard, is_uploaded, mark_uploaded, note_points, upload_failed

log = logging.getLogger(__name__)

INIT_SECONDS = 10.0  # W&B's default is 90
FINISH_SECONDS = 10.0  # for the uploads of one run, at its end; W&B's default is without limit
ONLINE, OFFLINE = "online", "offline"


@dataclass
class _Open:
    """A run that has begun.

    Attributes:
        run: W&B's.
        mode: in which it is written.
        there: points that W&B has of it from before, or will have once what was uploaded or written before counts.
        points: that it was given here, those that are there included.
        replaced: folders of the same run that its own makes superfluous.
    """

    run: Any
    mode: str
    there: int
    replaced: list[Path]
    points: int = 0


class WandbRuns:
    """The runs of one sweep. Every method is called from one thread, and none raises.

    Points of a run come in the same order whoever writes them, so a run that is gone on with, or written again, is
    given all of them, and those that W&B has already, which it counts, are left out.

    Attributes:
        kept: name of a run that ended → ``online`` where W&B has all of it, ``offline`` where the disk has.
        cut_off: names of runs that were not written to their end.
    """

    def __init__(
        self, folder: SweepFolder, uid: str, mode: str, fixed: dict[str, Any], note: Callable[[str], None]
    ) -> None:
        self._folder, self._uid, self.mode, self._fixed, self._note = folder, uid, mode, fixed, note
        self._folders = WandbFolders(folder.wandb_dir / "wandb")
        self._wandb: Any = None
        self._broken = False  # wandb cannot be used at all
        self._noted = False
        self._runs: dict[str, _Open] = {}
        self.kept: dict[str, str] = {}
        self.cut_off: set[str] = set()

    def connect(self) -> None:
        """Import wandb and find out whether it is logged in and the server answers, without asking the user."""
        if self._wandb is not None or self._broken:
            return
        if others := set_aside():
            self.say(f"W&B: not followed, as each trial is a run of its own: {', '.join(others)} (in the environment).")
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
        if self.mode == "online" and "WANDB_MODE" not in os.environ and machine in ("offline", "dryrun", "disabled"):
            self.mode = "disabled" if machine == "disabled" else "offline"  # `wandb offline` was run here
            self.say(f"W&B is set to {machine} on this machine (`wandb online` changes that).")
        if self.mode == "online":
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

    def start(
        self,
        name: str,
        job_type: str,
        config: dict[str, Any],
        tags: Sequence[str] = (),
        earlier: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Begin a run, or go on with it.

        Args:
            name: of the run.
            job_type: what W&B shows as its kind.
            config, tags: of the run.
            earlier: its points so far.
        """
        self.connect()
        if self._broken or self.mode == "disabled" or name in self._runs:
            return
        self.kept.pop(name, None)
        self.cut_off.discard(name)
        try:
            opened = self._open(name, job_type, config, tags)
            if opened is None:
                return
            self._runs[name] = opened
            # One x axis for all: W&B's own step counts the calls.
            opened.run.define_metric("step")
            opened.run.define_metric("*", step_metric="step")
        except Exception as error:
            self._lose(name, f"W&B: {name} is not tracked", error)
            return
        for point in earlier:
            self.log(name, point)

    def log(self, name: str, row: dict[str, Any]) -> None:
        opened = self._runs.get(name)
        if opened is None:
            return
        try:
            if opened.points >= opened.there:
                opened.run.log(row)
            opened.points += 1
        except Exception as error:
            self._lose(name, f"W&B: {name} is not tracked any further", error)

    def table(self, name: str, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table under ``key``. What cannot be logged is left out: the run goes on."""
        opened = self._runs.get(name)
        if opened is None or not rows:
            return
        try:
            opened.run.log({key: self._wandb.Table(columns=list(columns), data=[list(row) for row in rows])})
        except Exception as error:
            self._trouble(f"W&B: the table {key} of {name} is not tracked", error)

    def charts(self, name: str, charts: Mapping[str, Mapping[str, Any]]) -> None:
        """Log Plotly figures, given as their JSON, by key."""
        opened = self._runs.get(name)
        if opened is None:
            return
        try:
            import plotly.graph_objects as go

            opened.run.log({key: self._wandb.Plotly(go.Figure(figure)) for key, figure in charts.items()})
        except Exception as error:
            self._trouble(f"W&B: charts of {name} are not tracked", error)

    def artifact(
        self, name: str, artifact: str, kind: str, folder: Path, metadata: dict[str, Any], aliases: Sequence[str]
    ) -> None:
        """Log the files of a folder as a new version of an artifact. They are read where they lie, not copied."""
        opened = self._runs.get(name)
        if opened is None:
            return
        try:
            made = self._wandb.Artifact(artifact, kind, metadata=metadata)
            made.add_dir(str(folder), skip_cache=True, policy="mutable")
            opened.run.log_artifact(made, aliases=list(aliases))
        except Exception as error:
            self._trouble(f"W&B: {folder} was not logged as an artifact", error)

    def finish(self, name: str, summary: dict[str, Any], exit_code: int) -> None:
        opened = self._runs.get(name)
        if opened is None:
            return
        sent = True
        try:
            opened.run.summary.update(summary)
            opened.run.finish(exit_code=exit_code)
            sent = opened.mode == OFFLINE or not upload_failed(Path(opened.run.settings.log_internal))
        except TimeoutError:  # finish_timeout: what was not uploaded is on disk
            sent = False
        except Exception as error:
            self._lose(name, f"W&B: the end of {name} was not recorded", error)
            return
        del self._runs[name]
        folder = Path(opened.run.settings.sync_dir)
        note_points(folder, max(opened.points, opened.there))
        discard([it for it in opened.replaced if it != folder])
        if not sent:
            self._go_offline(f"{name} was not uploaded within {FINISH_SECONDS:.0f} s")
            return
        if opened.mode == ONLINE:
            mark_uploaded(folder)
        self.kept[name] = opened.mode

    def uploaded(self, name: str) -> bool:
        """Whether a run that was written offline was uploaded since."""
        folders = self._folders.of(f"{self._uid}-{name}")
        return bool(folders) and all(map(is_uploaded, folders))

    def waiting(self) -> bool:
        """Whether some run of this sweep, from now or from before, is on disk only."""
        return any(self._folders.missing())

    def sync_command(self) -> str:
        online = " --include-online" if self._folders.missing()[1] else ""
        return f"{program('wandb')} sync{online} {shell_path(self._folders.root)}"

    def later(self) -> str:
        return f"Upload later with `{self.sync_command()}`."

    def _open(self, name: str, job_type: str, config: dict[str, Any], tags: Sequence[str]) -> _Open | None:
        """Begin a run; None where that has to wait until the others have ended. Raises what W&B raises."""
        run_id = f"{self._uid}-{name}"
        before = self._folders.of(run_id)
        if self.mode == ONLINE:
            try:
                run = self._init(name, run_id, job_type, config, tags)
                return _Open(run, ONLINE, int(run.starting_step) if job_type != "sweep" else 0, before)
            except Exception as error:
                discard([it for it in self._folders.of(run_id) if it not in before])  # nothing is in there
                if _is_gone(error):
                    raise
                log.warning("W&B: %s could not start online: %s", name, error)
                self._go_offline(_line(error))
                # W&B's service holds on to the id of a run that could not start.
                if self._runs:
                    self.cut_off.add(name)
                    return None
                self.disconnect()
                self.connect()
        run = self._init(name, run_id, job_type, config, tags)
        return _Open(run, OFFLINE, self._folders.points(run_id), before)

    def _lose(self, name: str, what: str, error: Exception) -> None:
        """A run cannot be gone on with here; where W&B's service has ended, no run can."""
        gone = _is_gone(error)
        lost = [name, *self._runs] if gone else [name]
        self._trouble("W&B: its service process has ended; it is started again" if gone else what, error)
        for each in lost:
            self.cut_off.add(each)
            opened = self._runs.pop(each, None)
            if opened is not None and not gone:
                with contextlib.suppress(Exception):
                    opened.run.finish(exit_code=1)
        if gone:
            self.disconnect()

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
            sagemaker_disable=True,  # it would take the training job's name as the id of every run
            use_dot_wandb=False,
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
            mode=self.mode,
            dir=str(where),
            resume="allow",
            reinit="create_new",
            settings=settings,
        )

    def _go_offline(self, why: str) -> None:
        if self.mode == "online":
            self.mode = "offline"
            self.say(f"W&B: {why}; the runs are written offline. {self.later()}")

    def _trouble(self, what: str, error: Exception) -> None:
        log.warning("%s: %s", what, error, exc_info=error)
        if not self._noted:
            self._noted = True
            self.say(f"{what} ({_line(error)}). Results are in the sweep folder all the same.")

    def say(self, text: str) -> None:
        with contextlib.suppress(Exception):  # the terminal may be gone
            self._note(text)


def _is_gone(error: Exception) -> bool:
    """Whether W&B's service process, which all runs share, has ended: killed by somebody, or for its memory."""
    return isinstance(error, ConnectionError) or type(error).__name__ in ("MailboxClosedError", "HandleAbandonedError")


def _line(error: Exception) -> str:
    """The first line of an error's message, short."""
    lines = str(error).strip().splitlines()
    return (lines[0][:160] if lines else "") or type(error).__name__
