"""Where things are: our packages, checked at start-up because their names are common; programs and files as typed."""

import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path

from analysis.errors import HardwareError, LorasweepError

PACKAGES = ("analysis", "conf", "sweeps", "trainer")


def package_root() -> str:
    """The folder that holds the packages.

    Raises:
        LorasweepError: where they come from different places, such as another project's ``trainer``.
    """
    found = {}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise LorasweepError(
                f"package '{name}' is missing. Install lorasweep with `make install`, and use its .venv."
            )
        found[name] = str(Path(spec.origin).resolve().parent.parent)
    if len(set(found.values())) > 1:
        places = ", ".join(f"{name} from {place}" for name, place in found.items())
        raise LorasweepError(
            f"lorasweep's packages come from different places: {places}. Another project in this environment or folder"
            " uses one of these names. Run lorasweep from its own .venv, in a folder that holds none of them."
        )
    return found["sweeps"]


def typed(path: Path | str) -> str:
    """A path as one would type it here: relative where that is shorter, quoted where a shell needs it."""
    relative = os.path.relpath(path)
    return shlex.quote(min(relative, str(path), key=len))


def program(name: str = "lorasweep") -> str:
    """How to start one of this environment's programs here: by its name, or by its path where it is not on PATH."""
    beside, found = Path(sys.executable).with_name(name), shutil.which(name)
    if not beside.exists() or (found and Path(found).samefile(beside)):
        return name
    started = Path(sys.argv[0])
    if started.exists() and started.samefile(beside):
        return shlex.quote(sys.argv[0])
    return f"./{name}" if beside.parent == Path.cwd() else typed(beside)


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
