"""``lorasweep status``: how a sweep stands."""

from sweeps.commands.parser import Parser


def main(arguments: list[str]) -> int:
    parser = Parser("status", "How a sweep stands: running, stopped, finished, or left by a driver that died.")
    parser.add_sweep_folder()
    parser.add_json()
    options = parser.read(arguments)
    from analysis.folder import SweepFolder
    from analysis.text.visible import json_text
    from sweeps.display.status import lines, overview

    folder = SweepFolder.open(options.run)
    facts = overview(folder)
    print(json_text(facts) if options.json else "\n".join(lines(facts, folder)))
    return 0
