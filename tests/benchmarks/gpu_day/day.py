"""The day's command: its parts in order, each in a process with a time limit, and the tables of all."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu_day import processes
from tests.benchmarks.gpu_day.one_part import Order
from tests.benchmarks.gpu_day.parts import PARTS, Part
from tests.benchmarks.gpu_day.record import STOPPED

_DRY_MINUTES = 9.0  # of a part: what its tiny shapes take depends on what else the machine does
_LAST_SECONDS = 12.0  # of a part's time, in which it writes its last figures and ends


def day(arguments: Sequence[str], description: str) -> int:
    parser = argparse.ArgumentParser(
        prog="gpu_day", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", type=int, choices=[part.number for part in PARTS], help="default: all")
    parser.add_argument("--dry", action="store_true", help="tiny shapes")
    parser.add_argument("--minutes", type=float, help="of each part at most; default: " + minutes_of_parts())
    parser.add_argument("--out", type=Path, help="folder for figures and tables; default: $OUT, else runs/gpu-day")
    parser.add_argument("--models", type=Path, default=Path("/tmp/lorasweep-gpu-day"), help="folder for random models")
    parser.add_argument("--bundle", type=Path, help="make the archive for parts 4 to 6, and measure nothing")
    options = parser.parse_args(arguments)
    if options.bundle:
        from tests.benchmarks.gpu_day.bundle import make

        return make(options.bundle)
    out = options.out or Path(os.environ.get("OUT") or "runs/gpu-day")
    models = options.models / ("dry" if options.dry else "full")
    chosen = [part for part in PARTS if options.part is None or part.number in options.part]
    failed = False
    for part in chosen:
        most = _DRY_MINUTES if options.dry else part.minutes
        minutes = most if options.minutes is None else min(options.minutes, most)
        failed |= not run(part, out.absolute(), models.absolute(), minutes, options.dry)
        write_tables(out, PARTS)
    print("\n".join(line for part in chosen for line in of_file(out, part)))
    print(f"figures: {out}/part*.json, tables: {out}/tables.md")
    return int(failed)


def minutes_of_parts() -> str:
    return ", ".join(f"{part.number}: {part.minutes:g}" for part in PARTS)


def run(part: Part, out: Path, models: Path, minutes: float, dry: bool) -> bool:
    """Run a part in a process of its own, and end it where it takes too long. Returns whether all of it went well."""
    print(f"\n--- part {part.number}: {part.title} ({minutes:g} minutes at most)", flush=True)
    seconds = 60 * minutes
    own = max(seconds - _LAST_SECONDS, seconds / 2) / 60
    order = Order(part, str(out), str(models), own, dry)
    order.path.unlink(missing_ok=True)
    status = processes.run("tests.benchmarks.gpu_day.one_part", [order.words()], seconds)
    if status == 0 and order.path.exists():
        return True
    why = f"stopped after {seconds:.0f} s" if status is None else f"the process ended with status {status}"
    content = json.loads(order.path.read_text()) if order.path.exists() else order.record().content
    if status is None or content["state"] == STOPPED:  # else the part has put its errors down itself
        content["state"] = STOPPED
        content["errors"].append({"what": "the part", "error": why})
        order.path.parent.mkdir(parents=True, exist_ok=True)
        order.path.write_text(json.dumps(content, indent=1))
        print(why, flush=True)
    return False


def write_tables(out: Path, parts: Sequence[Part]) -> None:
    """``tables.md`` of all parts whose JSON lies in the folder."""
    lines = ["# Half an hour with a GPU", ""]
    for part in parts:
        lines += of_file(out, part)
    (out / "tables.md").write_text("\n".join(lines))


def of_file(out: Path, part: Part) -> list[str]:
    """A part as Markdown, by its JSON file; nothing where there is none."""
    path = out / f"part{part.number}.json"
    return of_part(part, json.loads(path.read_text())) if path.exists() else []


def of_part(part: Part, content: dict[str, Any]) -> list[str]:
    """A part as Markdown: what it was measured on, its tables, what failed and what was left out."""
    dry = " (dry run: no figure of a GPU's speed)" if content["dry"] else ""
    lines = [f"## {part.number}. {part.title}: {content['state']}{dry}", ""]
    on = content["machine"]
    if on:
        card: dict[str, Any] = on.get("card_before", {})
        after = {name: on.get("card_after", {}).get(name) for name in ("sm_mhz", "power_w", "celsius")} if card else {}
        lines += [
            f"{on['device']}; {', '.join(f'{name} {version}' for name, version in on['versions'].items())}; "
            f"{on['host']['cores']} cores, {on['host']['memory_gib']} GiB; {content['seconds']} s",
            "",
        ]
        if card:
            lines += [f"card before: {_words(card)}; after: {_words(after)}", ""]
    try:
        lines += part.tables(content["figures"])
    except Exception as error:  # of a part that broke off in the middle; its figures are in the JSON
        lines += [f"No table: {type(error).__name__}: {error}"]
    lines += [f"- failed: {one['what']}: {one['error'].splitlines()[-1]}" for one in content["errors"]]
    lines += [f"- left out: {one['what']}: {one['why']}" for one in content["left_out"]]
    return [*lines, ""]


def _words(of: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in of.items())
