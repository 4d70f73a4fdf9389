"""Checks of this machine: what a sweep needs is tried, and what is missing comes with the way to mend it."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from analysis.errors import HardwareError, LorasweepError, first_line
from sweeps.process.scratch import socket_place
from trainer import host_memory

_NET_SECONDS = 3.0
_LITTLE_DISK = 5e9  # bytes: a model and its checkpoints
_LITTLE_MEMORY = 3e9  # bytes: Ray, a worker with a small model, and the driver
_RAY_FULL = 0.95  # share of the disk with Ray's files from which Ray refuses to spill


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: such as ``torch``.
        state: ``ok``; ``note``: sweeps run, with something to know; ``missing``: no sweep runs before it is mended.
        found: what this machine has, for people.
        advice: what to do; empty for ``ok``.
        facts: what this machine has, for programs.
    """

    name: str
    state: Literal["ok", "note", "missing"]
    found: str
    advice: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def examine(folder: Path) -> Iterator[Finding]:
    """Run all checks, and yield each finding as it is made. A check that raises gives a finding too.

    Args:
        folder: where sweeps would be written.
    """
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("Python", _python),
        ("lorasweep", _place),
        ("libraries", _libraries),
        ("machine", _machine),
        ("torch", _torch),
        ("precisions", _precisions),
        ("Ray", _ray),
        ("W&B", _wandb),
        ("model hub", _hub),
        ("cache", _cache),
        ("disk", lambda: _disk(folder)),
    ]
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:  # a broken installation raises anything
            fault = f"{type(error).__name__}: {first_line(error)}"
            yield Finding(name, "missing", fault, "Install again: make install")


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    facts = {"version": version, "executable": sys.executable, "system": platform.platform()}
    if (3, 11) <= sys.version_info < (3, 14):
        yield Finding("Python", "ok", f"{version} ({sys.executable})", facts=facts)
    else:
        yield Finding(
            "Python", "missing", version, "lorasweep needs 3.11 to 3.13: make install PYTHON=python3.12", facts
        )


def _place() -> Iterator[Finding]:
    from sweeps.process.installation import package_root
    from sweeps.store.manifest import commit

    try:
        root = package_root()
    except LorasweepError as error:
        yield Finding("lorasweep", "missing", "its packages are not together", str(error))
        return
    at = commit()
    shown = f"{importlib.metadata.version('lorasweep')} in {root}" + (f", commit {at[:12]}" if at else "")
    yield Finding("lorasweep", "ok", shown, facts={"root": root, "commit": at})


def _libraries() -> Iterator[Finding]:
    from sweeps.store.manifest import LIBRARIES, versions

    installed = versions()
    absent = [name for name in LIBRARIES if installed[name] == "not installed"]
    shown = ", ".join(f"{name} {installed[name]}" for name in LIBRARIES if name not in absent)
    if absent:
        yield Finding(
            "libraries", "missing", f"not installed: {', '.join(absent)}", "Install them: make install", installed
        )
    else:
        yield Finding("libraries", "ok", shown, facts=installed)


def _machine() -> Iterator[Finding]:
    cores, usable = os.cpu_count() or 1, usable_cores()
    limit, total, free = host_memory.limit(), host_memory.total(), host_memory.available()
    machine = psutil.virtual_memory().total
    threads = os.environ.get("OMP_NUM_THREADS")
    facts = {"cores": cores, "usable_cores": usable, "memory": total, "memory_available": free, "omp_threads": threads}
    shown = f"{cores} cores, {_gb(total)} of memory, {_gb(free)} of it free"
    shown += f" (the limit of a container or job; the machine has {_gb(machine)})" if limit else ""
    shown += f", OMP_NUM_THREADS={threads}" if threads else ""
    if free < _LITTLE_MEMORY:
        advice = "A small model wants 3 GB free: end other programs, or expect failures."
        yield Finding("machine", "note", shown, advice, facts)
    elif usable < cores:
        advice = f"This process may use {usable:g} of them: resources.threads={max(1, int(usable))}"
        yield Finding("machine", "note", shown, advice, facts)
    else:
        yield Finding("machine", "ok", shown, facts=facts)


def usable_cores() -> float:
    """Cores that this process may use: its affinity, and the container's share of time."""
    allowed = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(allowed, int(quota) / int(period))
    except (OSError, ValueError):  # no such control group, or "max"
        return allowed


def _torch() -> Iterator[Finding]:
    import torch

    build = torch.version.cuda
    gpus: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
            gpus.append(
                {"name": torch.cuda.get_device_name(index), "memory": total, "free": free, "capability": capability}
            )
    facts = {"version": torch.__version__, "cuda": build, "gpus": gpus, "threads": torch.get_num_threads()}
    shown = f"{torch.__version__}, " + (f"CUDA {build}" if build else "CPU build")
    yield Finding("torch", "ok", shown, facts=facts)
    has_driver = shutil.which("nvidia-smi") is not None
    if gpus:
        for index, gpu in enumerate(gpus):
            summary = f"{gpu['name']}, {_gb(gpu['memory'])}, {_gb(gpu['free'])} of it free"
            taken = gpu["free"] < gpu["memory"] / 2
            advice = "Others use more than half of its memory: `nvidia-smi` shows who." if taken else ""
            yield Finding(f"GPU {index}", "note" if taken else "ok", summary, advice, gpu)
    elif has_driver and not build:
        yield Finding("GPU", "note", "a driver is installed, but this torch is a CPU build", "make install TORCH=cuda")
    elif build:
        advice = "Check `nvidia-smi` and CUDA_VISIBLE_DEVICES, or train on the CPU."
        yield Finding("GPU", "note", "this torch finds no GPU", advice)
    else:
        yield Finding("GPU", "ok", "none; trials train on the CPU", facts={"gpus": []})


def _precisions() -> Iterator[Finding]:
    import torch

    from trainer.models.base_model import available_precisions, slow_precisions
    from trainer.preload import import_bitsandbytes

    import_bitsandbytes()
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i): i for i in reversed(range(torch.cuda.device_count()))}
        devices = [torch.device("cuda", index) for index in sorted(names.values())]
    for device in devices:
        faults, slow = available_precisions(device), slow_precisions(device)
        works = [name for name, fault in faults.items() if not fault]
        name = "precisions" if len(devices) == 1 else f"precisions of GPU {device.index}"
        shown = f"{', '.join(works) or 'none'} (tried on {device})"
        if "fp32" not in works:
            yield Finding(name, "missing", shown, "Install torch again: make install", faults)
        elif len(works) < len(faults) or slow:
            broken = [f"{name}: {fault}" for name, fault in faults.items() if fault]
            broken += [f"{name} works, but takes {times:.0f} times as long as fp32" for name, times in slow.items()]
            yield Finding(name, "note", shown, f"{'; '.join(broken)}. Sweeps leave these out.", faults)
        else:
            yield Finding(name, "ok", shown, facts=faults)


def _ray() -> Iterator[Finding]:
    version = importlib.metadata.version("ray")
    named, running = os.environ.get("RAY_ADDRESS"), _running_rays()
    facts = {"version": version, "RAY_ADDRESS": named, "running": running}
    try:
        scratch = socket_place()
    except HardwareError as error:
        yield Finding("Ray", "missing", version, str(error), facts)
        return
    usage = shutil.disk_usage(scratch)
    if usage.used / usage.total > _RAY_FULL:
        advice = f"Ray refuses to work on a full disk: free some of {scratch}, or name another place: LORASWEEP_TMP=DIR"
        yield Finding("Ray", "note", f"{version}; {scratch} is {usage.used / usage.total:.0%} full", advice, facts)
    elif named:
        advice = "Sweeps do not follow it: they start a Ray of their own. To join that one: ray.address=auto"
        yield Finding("Ray", "note", f"{version}; RAY_ADDRESS={named} is set", advice, facts)
    elif running:
        advice = "Sweeps start a Ray of their own beside it. To join one: ray.address=HOST:PORT"
        yield Finding("Ray", "note", f"{version}; running here: {', '.join(running)}", advice, facts)
    else:
        yield Finding("Ray", "ok", f"{version}; none runs here, sweeps start their own", facts=facts)


def _running_rays() -> list[str]:
    """Addresses of the Rays of this machine, from the command lines of their processes."""
    addresses = set()
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if "raylet" in line and (address := re.search(r"--gcs-address=(\S+)", line)):
            addresses.add(address[1])
    return sorted(addresses)


def _wandb() -> Iterator[Finding]:
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "dryrun", "disabled"):
        yield Finding("W&B", "ok", f"WANDB_MODE={mode}: nothing is sent", facts={"mode": mode})
        return
    import wandb

    host = str(wandb.Settings().base_url)
    if not wandb.login(prompt=False, verify=False):
        advice = "Runs are written offline into the sweep folder. To log live: wandb login, and tracking=wandb"
        yield Finding("W&B", "note", "not logged in", advice, {"login": False, "host": host})
        return
    reached = _reaches(host)
    facts = {"login": True, "host": host, "reached": not reached}
    if reached:
        yield Finding("W&B", "note", f"logged in, but {host} is not reached ({reached})", "Sweeps log offline.", facts)
    else:
        yield Finding("W&B", "ok", f"logged in at {host}; to log live: tracking=wandb", facts=facts)


def _hub() -> Iterator[Finding]:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        shown = f"offline (HF_HUB_OFFLINE); models of the hub come from {constants.HF_HUB_CACHE} alone"
        yield Finding("model hub", "ok", shown, facts={"offline": True, "reached": None})
        return
    fault = _reaches(constants.ENDPOINT)
    facts = {"offline": False, "reached": not fault, "endpoint": constants.ENDPOINT}
    if fault:
        advice = "model=smollm2, minilm and local need no hub. HF_HUB_OFFLINE=1 saves the waiting; HF_ENDPOINT names"
        advice += " a mirror."
        yield Finding("model hub", "note", f"{constants.ENDPOINT} is not reached ({fault})", advice, facts)
    else:
        yield Finding("model hub", "ok", f"{constants.ENDPOINT} answers", facts=facts)


def _reaches(address: str) -> str:
    """Why a server does not answer within some seconds; empty where it does, whatever it says. Proxies are followed."""
    request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "lorasweep"})
    try:
        urllib.request.urlopen(request, timeout=_NET_SECONDS).close()
    except urllib.error.HTTPError as error:
        return "" if error.code < 500 else f"status {error.code}"
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return ""


def _cache() -> Iterator[Finding]:
    from trainer.assets.cache import cache_folder
    from trainer.assets.packages import cached
    from trainer.evaluation.bias.registry import packages

    folder = cache_folder()
    known = packages()
    in_cache = [name for name in known if cached(name, known)]
    absent = [name for name in known if name not in in_cache]
    facts = {"folder": str(folder), "cached": in_cache, "absent": absent}
    shown = f"{folder}: {', '.join(in_cache) or 'empty'}"
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    writable = nearest.is_dir() and os.access(nearest, os.W_OK)
    if absent and not writable:
        advice = f"It cannot be written, and lacks {', '.join(absent)}: set LORASWEEP_CACHE to a folder of yours."
        yield Finding("cache", "note", shown, advice, facts)
    elif absent:
        advice = (
            f"Not fetched yet: {', '.join(absent)}. Sweeps fetch what they need; lorasweep fetch does so beforehand."
        )
        yield Finding("cache", "note", shown, advice, facts)
    else:
        yield Finding("cache", "ok", shown, facts=facts)


def _disk(folder: Path) -> Iterator[Finding]:
    from trainer.assets.cache import cache_folder

    for name, place, remedy in (("disk", folder, "sweep.dir=…"), ("disk of cache", cache_folder(), "LORASWEEP_CACHE")):
        nearest = next(path for path in (place, *place.parents) if path.exists())
        free = shutil.disk_usage(nearest).free
        facts = {"folder": str(place), "free": free}
        if not os.access(nearest, os.W_OK):
            yield Finding(name, "note", f"{nearest} cannot be written", f"Choose another place: {remedy}", facts)
        elif free < _LITTLE_DISK:
            advice = f"Free some, or choose another place: {remedy}"
            yield Finding(name, "note", f"{_gb(free)} free at {nearest}", advice, facts)
        else:
            yield Finding(name, "ok", f"{_gb(free)} free at {nearest}", facts=facts)


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.0f} GB" if n_bytes >= 1e10 else f"{n_bytes / 1e9:.1f} GB"
