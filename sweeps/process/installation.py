"""Where lorasweep is installed, and how its programs and files are written on a command line here."""

import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path

from analysis.errors import HardwareError, LorasweepError

PACKAGES = ("analysis", "conf", "sweeps", "trainer")


def package_root() -> str:
    """The folder that holds the four packages. Their names are common, so it is checked at start-up that all are ours.

    Raises:
        LorasweepError: where they come from different places, such as another project's ``trainer``.
    """
    roots = {}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise LorasweepError(
                f"package '{name}' is missing. Install lorasweep with `make install`, and use its .venv."
            )
        roots[name] = str(Path(spec.origin).resolve().parent.parent)
    if len(set(roots.values())) > 1:
        places = ", ".join(f"{name} from {place}" for name, place in roots.items())
        raise LorasweepError(
            f"lorasweep's packages come from different places: {places}. Another project in this environment or folder"
            " uses one of these names. Run lorasweep from its own .venv, in a folder that holds none of them."
        )
    return roots["sweeps"]


def shell_path(path: Path | str) -> str:
    """A path for a command line here: relative where that is shorter, quoted where a shell needs it; a URI as it is."""
    if "://" in str(path):
        return shlex.quote(str(path))
    relative = os.path.relpath(path)
    return shlex.quote(min(relative, str(path), key=len))


def program(name: str = "lorasweep") -> str:
    """How to start a program of this environment here: by its name, or by its path where it is not on ``PATH``.

    Args:
        name: of the program, such as ``lorasweep`` or ``wandb``.
    """
    beside, on_path = Path(sys.executable).with_name(name), shutil.which(name)
    if not beside.exists() or (on_path and Path(on_path).samefile(beside)):
        return name
    started = Path(sys.argv[0])
    if started.exists() and started.samefile(beside):
        return shlex.quote(sys.argv[0])
    return f"./{name}" if beside.parent == Path.cwd() else shell_path(beside)


def missing_extra(command: str, library: str, extra: str) -> HardwareError:
    """What to raise where a command needs a library that is installed with an extra alone.

    Args:
        command: that the user gave, without ``lorasweep``.
        library: its name on the package index.
        extra: of ``[project.optional-dependencies]`` in pyproject.toml.
    """
    return HardwareError(
        f"{command} needs {library}, which is not installed. Install it: {program('pip')} install 'lorasweep[{extra}]'"
    )
