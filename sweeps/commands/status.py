"""``lorasweep status``: how a sweep stands."""

from sweeps.commands.parser import Parser


def main(arguments: list[str]) -> int:
    parser = Parser("status", "How a sweep stands: running, stopped, finished, or left by a driver that died.")
    parser.add_sweep_folder()
    parser.add_json()
    options = parser.read(arguments)
    import json

    from analysis.folder import SweepFolder
    from sweeps.display.status import lines, overview

    folder = SweepFolder.open(options.run)
    facts = overview(folder)
    print(json.dumps(facts, indent=2, ensure_ascii=False) if options.json else "\n".join(lines(facts, folder)))
    return 0
