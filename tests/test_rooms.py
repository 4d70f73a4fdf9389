"""The layout of the three packages; ``make check`` holds which room may import which."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = sorted(path.parent for name in ("analysis", "sweeps", "trainer") for path in (ROOT / name).rglob("__init__.py"))
MOST = 20  # modules of a room


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_room_is_small_enough_to_look_around_in(room: Path) -> None:
    modules = [path for path in room.glob("*.py") if path.name != "__init__.py"]
    assert modules or room.name in ("analysis", "sweeps", "trainer")
    assert len(modules) <= MOST or room == ROOT / "sweeps" / "commands"  # one a subcommand


@pytest.mark.parametrize("package", ["analysis", "sweeps", "trainer"])
def test_every_module_lies_in_a_package_that_is_found(package: str) -> None:
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_tests_mirror_the_rooms() -> None:
    rooms = {room.relative_to(ROOT) for room in ROOMS}
    for package in ("analysis", "sweeps", "trainer"):
        folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests" / package).rglob("test_*.py")}
        assert folders <= rooms
