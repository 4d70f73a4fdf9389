"""``lorasweep report``: a sweep as one HTML file."""

from sweeps.commands.parser import Parser
from sweeps.process import gc_pause


def main(arguments: list[str]) -> int:
    parser = Parser(
        "report",
        "Write a sweep, running or finished, as one HTML file that opens anywhere without a network.",
        "examples:\n  lorasweep report runs/quickstart\n  lorasweep report runs/quickstart --out quickstart.html\n",
    )
    parser.add_sweep_folder()
    parser.add_argument("--out", metavar="FILE", help="where to write it; RUN/report.html if left out")
    options = parser.read(arguments)
    with gc_pause.paused():
        from pathlib import Path

        from analysis.errors import refuse_uri
        from analysis.folder import SweepFolder
        from analysis.report import write

        refuse_uri("--out ", options.out)
        folder = SweepFolder.open(options.run)
        to = write(folder, Path(options.out) if options.out else None)
    if not options.out and folder.copy is not None:
        print(folder.where_is(to))
    print(f"{to}  ({to.stat().st_size / 1e6:.1f} MB; open it in a browser)")
    return 0
