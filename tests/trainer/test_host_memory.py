"""The limit of a container or job counts as the machine's memory."""

from pathlib import Path

import psutil
import pytest

from trainer import host_memory


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(host_memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(host_memory, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(host_memory, "_KILLS_OF_MACHINE", tmp_path / "vmstat")
    return tmp_path


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".", 1) if name.startswith("memory_") else folder / name).write_text(f"{content}\n")


def test_a_container_sees_its_limit_at_the_root(groups: Path) -> None:
    group(groups, own="0::/", memory_max=1000, memory_current=700, memory_stat="anon 600\ninactive_file 100")
    assert (host_memory.limit(), host_memory.total(), host_memory.available()) == (1000, 1000, 400)


def test_a_job_sees_the_least_limit_of_the_groups_above_it(groups: Path) -> None:
    group(groups, own="0::/slurm/job_7/step_0")
    group(groups / "slurm", memory_max=5000, memory_current=4900)
    group(groups / "slurm/job_7", memory_max=2000, memory_current=500)
    group(groups / "slurm/job_7/step_0", memory_max=3000, memory_current=500)
    assert host_memory.limit() == 2000
    assert host_memory.available() == 100, "others use what the group above has"


def test_version_1_has_a_tree_for_memory(groups: Path) -> None:
    group(groups, own="5:cpu,cpuacct:/x\n4:memory:/x\n1:name=systemd:/x\n0::/")
    group(groups / "memory", memory_limit_in_bytes=2**63 - 4096, memory_usage_in_bytes=0)
    group(groups / "memory/x", memory_limit_in_bytes=3000, memory_usage_in_bytes=2500)
    (groups / "memory/x/memory.stat").write_text("inactive_file 1\ntotal_inactive_file 400\n")
    assert (host_memory.total(), host_memory.available()) == (3000, 900)


def test_without_a_limit_the_machine_counts(groups: Path) -> None:
    group(groups, own="0::/", memory_max="max")
    assert host_memory.limit() is None
    assert host_memory.total() == psutil.virtual_memory().total
    (groups / "own").unlink()
    assert host_memory.limit() is None
    assert host_memory.available() > 0
    assert host_memory.kills() == 0


def test_kills_are_those_of_the_own_group_or_else_of_the_machine(groups: Path) -> None:
    group(groups, own="0::/", vmstat="pgpgin 5\noom_kill 3")
    assert host_memory.kills() == 3
    group(groups, own="0::/a/b")
    group(groups / "a", memory_events="oom_kill 9")
    group(groups / "a/b", memory_events="oom 4\noom_kill 2")
    assert host_memory.kills() == 2
    group(groups, own="4:memory:/b\n0::/")
    group(groups / "memory/b")
    (groups / "memory/b/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert host_memory.kills() == 1
