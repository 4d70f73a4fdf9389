"""``lorasweep doctor``: what this machine has, and what to do about what is missing."""

import json
import textwrap
from dataclasses import asdict
from pathlib import Path

from analysis.errors import HardwareError
from sweeps.commands.parser import Parser

_MARKS = {"ok": ("✓", "green"), "note": ("!", "yellow"), "missing": ("✗", "red")}

_NAME = 16  # columns


def main(arguments: list[str]) -> int:
    parser = Parser(
        "doctor",
        "Look at this machine: what a sweep finds here, tried where it can be, and what to do about what is missing.",
        "exit status: 0 where sweeps can run here (✓ and !), 7 where something that they need is missing (✗).\n",
    )
    parser.add_json()
    options = parser.read(arguments)
    from rich.text import Text

    from sweeps.checks.doctor import examine
    from sweeps.process.console import SafeConsole

    console = SafeConsole()
    width = console.width
    findings = []
    for finding in examine(Path.cwd()):
        findings.append(finding)
        if options.json:
            continue
        mark, colour = _MARKS[finding.state]
        line = _indented(f"{finding.name:<{_NAME}}{finding.found}", width)
        console.print(Text(f"{mark} ", colour) + Text(line[:_NAME], "bold") + Text(line[_NAME:]), soft_wrap=True)
        if finding.advice:
            advice = _indented(" " * _NAME + finding.advice, width)
            console.print(Text(f"  {advice}", "" if finding.state == "missing" else "dim"), soft_wrap=True)
    missing = [finding.name for finding in findings if finding.state == "missing"]
    if options.json:
        print(json.dumps({"ok": not missing, "checks": [asdict(finding) for finding in findings]}, indent=1))
    elif missing:
        console.print(f"\nNo sweep can run here before this is mended: {', '.join(missing)}.")
    else:
        console.print("\nSweeps can run here.")
    return HardwareError.exit_code if missing else 0


def _indented(text: str, width: int) -> str:
    return textwrap.fill(
        text,
        min(width, 120) - 2,
        subsequent_indent=" " * (_NAME + 2),
        drop_whitespace=True,
        break_long_words=False,
        break_on_hyphens=False,
    )
