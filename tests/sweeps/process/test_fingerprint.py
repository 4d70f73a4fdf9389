"""Which code and libraries a process runs, and how two are told apart."""

from dataclasses import replace
from pathlib import Path

from sweeps.process import fingerprint as module
from sweeps.process.fingerprint import Fingerprint, differences, fingerprint
from sweeps.process.installation import package_root

HERE = Fingerprint("/a", {"sweeps/cli.py": "1", "trainer/engine.py": "2"}, {"Python": "3.11", "torch": "2.13.0"})


def test_every_module_and_config_file_of_the_packages_counts() -> None:
    mine = fingerprint()
    assert mine.root == package_root()
    for name in ("analysis/errors.py", "sweeps/driver/device_worker.py", "trainer/engine.py", "conf/config.yaml"):
        assert len(mine.files[name]) == 64
    assert not [name for name in mine.files if "__pycache__" in name or name.startswith(("tests", "."))]
    assert set(mine.versions) == {"Python", *module.LIBRARIES}
    assert "+" not in mine.versions["torch"], "a node without a GPU has another build"
    assert differences(mine, fingerprint()) == ""


def test_where_the_code_lies_makes_no_difference() -> None:
    assert differences(HERE, replace(HERE, root="/b")) == ""


def test_files_and_versions_that_differ_are_named() -> None:
    there = Fingerprint("/a", {"sweeps/cli.py": "9", "sweeps/new.py": "1"}, {"Python": "3.12", "torch": "2.13.0"})
    assert differences(HERE, there) == (
        "sweeps/cli.py differs, trainer/engine.py is missing there, sweeps/new.py is only there;"
        " Python 3.12 instead of 3.11"
    )


def test_of_many_files_a_few_are_named() -> None:
    there = replace(HERE, files={f"sweeps/m{n}.py": "1" for n in range(9)})
    assert differences(HERE, there).endswith("and 8 more")


def test_a_library_that_is_not_installed_differs(monkeypatch) -> None:
    mine = fingerprint()
    monkeypatch.setattr(module, "LIBRARIES", ("ray", "no-such-library"))
    there = fingerprint()
    assert there.versions["no-such-library"] == "not installed"
    assert "torch not installed instead of" in differences(mine, there)


def test_the_order_of_files_and_their_times_make_no_difference(tmp_path: Path, monkeypatch) -> None:
    for name in ("analysis", "conf", "sweeps", "trainer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    monkeypatch.setattr(module, "package_root", lambda: str(tmp_path))
    before = fingerprint()
    (tmp_path / "sweeps" / "__init__.py").touch()
    assert fingerprint() == before
    (tmp_path / "sweeps" / "__init__.py").write_text("x = 1\n")
    assert differences(before, fingerprint()) == "sweeps/__init__.py differs"
