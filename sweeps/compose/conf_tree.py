"""The config groups and their options, as files: shipped ones and those of ``--config-dir``. Imports no Hydra."""

from collections.abc import Iterator
from pathlib import Path

import conf
from analysis.errors import ConfigError, refuse_uri

SHIPPED = Path(conf.__file__).parent


def extra_folder(config_dir: str | None) -> Path | None:
    """The folder that ``--config-dir`` names, as an absolute path; None without it.

    Args:
        config_dir: as typed, or None.

    Raises:
        ConfigError: if it is not there, holds no group with a YAML file, or has a file that a shipped one would hide.
    """
    if config_dir is None:
        return None
    refuse_uri("--config-dir ", config_dir)
    folder = Path(config_dir).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder.")
    files = [file.relative_to(folder) for file in _options(folder)]
    if not files:
        raise ConfigError(
            f"--config-dir {config_dir}: no config group in it. Put files into a folder named after their group,"
            f" such as {config_dir.rstrip('/')}/experiment/mine.yaml, chosen by experiment=mine."
        )
    hidden = [file for file in files if (SHIPPED / file).exists()]
    if hidden:
        raise ConfigError(
            f"{folder / hidden[0]} has the name of a file that comes with lorasweep, which would be used. Rename it."
        )
    return folder


def groups(extra: Path | None = None) -> dict[str, list[str]]:
    """Every config group and its options, sorted."""
    options_of: dict[str, set[str]] = {}
    for folder in (SHIPPED, extra):
        for file in _options(folder) if folder else ():
            options_of.setdefault(file.parent.relative_to(folder or SHIPPED).as_posix(), set()).add(file.stem)
    return {name: sorted(options) for name, options in sorted(options_of.items())}


def summary(group: str, option: str) -> str:
    """What a shipped option is: the first line of its file that is a sentence; empty without one.

    Args:
        group: such as ``experiment``.
        option: the file's name without its ending.
    """
    for line in (SHIPPED / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines():
        text = line.lstrip("# ")
        if line.startswith("#") and not text.startswith("@"):
            return text
    return ""


def _options(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.glob("**/*.yaml")) if file.parent != folder)
