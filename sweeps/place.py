"""Start-up check: the packages' names are common, so they must come from one and the same place."""

import importlib.util
from pathlib import Path

from analysis.errors import LorasweepError

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
