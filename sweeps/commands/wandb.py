"""``lorasweep wandb``: a sweep's workspace and report at W&B, and sweeps that are only there."""

from pathlib import Path
from typing import TYPE_CHECKING

from analysis.errors import ConfigError, FetchError, did_you_mean, first_line, refuse_uri
from analysis.text.visible import json_text
from sweeps.commands.parser import Parser

if TYPE_CHECKING:
    from analysis.folder import SweepFolder
    from sweeps.tracking.wandb_workspace import Shown

ACTIONS = ("report", "pull")


def main(arguments: list[str]) -> int:
    parser = Parser(
        "wandb",
        "report RUN: make, or update, a workspace view and a report of a sweep at W&B.\n"
        "pull ENTITY/PROJECT: write a sweep that was logged there as a sweep folder, and rank it.",
        "examples:\n  lorasweep wandb report runs/quickstart\n"
        "  lorasweep wandb pull my-team/lorasweep --group quickstart --to runs/pulled\n"
        "  lorasweep wandb pull my-team/other --metric accuracy=eval/acc --objective accuracy\n",
    )
    parser.add_argument("action", metavar="ACTION", help="report or pull")
    parser.add_argument("what", metavar="RUN|ENTITY/PROJECT", help="sweep folder to report on; project to pull from")
    parser.add_argument("--entity", help="report: user or team, if not the account's default")
    parser.add_argument("--print", action="store_true", help="report: print what would be saved, and save nothing")
    parser.add_argument("--group", help="pull: only the runs of this group (a sweep's name)")
    parser.add_argument("--to", metavar="DIR", help="pull: folder to write; runs/<group or project> if left out")
    parser.add_argument(
        "--metric", action="append", default=[], metavar="OURS=THEIRS", help="pull: what a metric is called there"
    )
    parser.add_argument("--objective", metavar="METRIC", help="pull: rank by this metric")
    options = parser.read(arguments)
    if options.action == "report":
        return _report(options.what, options.entity, options.print)
    if options.action == "pull":
        return _pull(options.what, options.group, options.to, options.metric, options.objective)
    raise ConfigError(
        f"lorasweep wandb {options.action}: expected report or pull. {did_you_mean(options.action, ACTIONS)}"
    )


def _report(run: str, entity: str | None, only_print: bool) -> int:
    from analysis.folder import SweepFolder
    from sweeps.process.installation import missing_extra

    try:
        from sweeps.tracking.wandb_workspace import report, save, specification, workspace
    except ModuleNotFoundError as error:
        if error.name != "wandb_workspaces":
            raise
        raise missing_extra("wandb report", "wandb-workspaces", "wandb-report") from None
    folder = SweepFolder.open(run)
    shown = _shown(folder, entity, may_ask=not only_print)
    if only_print:
        print(json_text(specification(shown)))
        return 0
    try:
        addresses = save(folder, workspace(shown), report(shown))
    except Exception as error:  # requests', W&B's and pydantic's alike
        raise FetchError(
            f"W&B: the report could not be saved ({first_line(error)[:200]}). Log in (`wandb login`); `wandb sync`"
            " first what was logged offline. --print shows what would be saved."
        ) from None
    print(*addresses, sep="\n")
    return 0


def _shown(folder: "SweepFolder", entity: str | None, may_ask: bool) -> "Shown":
    from analysis.leaderboard import leaderboard
    from analysis.leaderboard.ranking import objective_of
    from sweeps.store.manifest import read_manifest
    from sweeps.tracking.tables import leaderboard_table
    from sweeps.tracking.wandb_workspace import Shown

    manifest = read_manifest(folder)
    tracking = manifest["config"]["tracking"]
    entity = entity or tracking.get("entity") or (_default_entity() if may_ask else "ENTITY")
    rows = leaderboard.build(folder)
    columns, cells = leaderboard_table(rows)
    return Shown(
        entity=entity,
        project=tracking["project"],
        group=folder.name,
        searched=tuple(manifest["space"]),
        log=tuple(path for path, dimension in manifest["space"].items() if dimension.get("log")),
        terms=objective_of(folder, rows)[0].terms,
        answer=tuple(leaderboard.verdict(folder, rows).splitlines()),
        columns=tuple(columns),
        rows=tuple(tuple(line) for line in cells),
    )


def _default_entity() -> str:
    import wandb

    try:
        entity = wandb.Api().default_entity
    except Exception as error:
        raise FetchError(
            f"W&B: not logged in ({first_line(error)[:200]}). Run `wandb login`, or see what would be saved: --print"
        ) from None
    if not entity:
        raise ConfigError("W&B: the account has no default entity. Give one: --entity USER_OR_TEAM")
    return str(entity)


def _pull(path: str, group: str | None, to: str | None, metrics: list[str], objective: str | None) -> int:
    from analysis.leaderboard import leaderboard
    from analysis.metrics import METRICS
    from sweeps.display.summary import show_leaderboard
    from sweeps.tracking.wandb_pull import fetch_runs, write_folder

    if path.count("/") != 1:
        raise ConfigError(f"lorasweep wandb pull {path}: expected ENTITY/PROJECT, as in the project's address at W&B.")
    refuse_uri("--to ", to)
    renamed = {}
    for renaming in metrics:
        ours, equals, theirs = renaming.partition("=")
        if not (equals and theirs):
            raise ConfigError(f"--metric {renaming}: expected OURS=THEIRS, such as accuracy=eval/acc.")
        if ours not in METRICS:
            raise ConfigError(f"--metric {renaming}: '{ours}' is not a metric. {did_you_mean(ours, METRICS)}")
        renamed[theirs] = ours
    runs = fetch_runs(path, group)
    if not runs:
        among = f" in group '{group}'" if group else ""
        raise ConfigError(
            f"W&B: {path} has no runs{among}. `lorasweep run` prints the sweep's name, which is the group."
        )
    target = Path(to or f"runs/{group or path.split('/')[1]}")
    folder = write_folder(runs, target, f"{path}{f' group {group}' if group else ''}", renamed, objective)
    rows = leaderboard.build(folder)
    leaderboard.write(folder, rows)
    show_leaderboard(folder, rows)
    print(f"\n{len(runs)} runs of {path} are in {target}/")
    return 0
