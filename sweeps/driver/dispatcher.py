"""Which device worker a trial goes to: the one place that knows all devices and all trials of a sweep.

An actor beside the driver. The driver's fleet (``sweeps/driver/device_fleet.py``) tells it which devices there are;
trials ask it for one (``sweeps/driver/device_client.py``), and wait here where all are taken or there is none. What it
believes is a guess: a device worker itself decides whether it has room. So nothing is lost where this process dies:
Ray starts it again, and it learns from what workers answer.
"""

import asyncio
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sweeps.driver.device_client import Device, DeviceClient, Trials
from sweeps.process.termination import on_sigterm

_BELIEVED_FULL = 10.0  # seconds: a worker that said so is asked again then, or once a trial has left it
_LIST_AGE = 30.0  # seconds; the driver's list of trials does not have those yet that have just begun


@dataclass(eq=False)
class _Request:
    """A trial that waits for a device."""

    trial_id: str
    precision: str
    alone: bool
    answer: "asyncio.Future[DeviceClient]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Dispatcher:
    """Gives each trial a device with a free slot: the one on which it will be done first, as far as that is known.

    The trials of a pack are taken to share their device's speed: a second one goes to a fast device rather than to an
    empty one that is four times slower, but none is left empty while trials double up on its equal, which measured a
    little faster.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._devices: dict[str, Device] = {}
        self._fastest = 0.0  # speed of a device
        self._given: dict[str, str] = {}  # trial → name of its device
        self._loads: Counter[str] = Counter()  # name of a device → its trials
        self._asked: dict[str, float] = {}  # trial → when it asked last
        self._alone: dict[str, str] = {}  # name of a device → the trial that has it to itself
        self._full: dict[str, tuple[int, float]] = {}  # name of a device → how many trials it had, when it said so
        self._gone: set[str] = set()  # names of devices whose process did not answer
        self._requests: list[_Request] = []
        self._verdicts: dict[str, bool] = {}  # name of a lost device → whether its process died by itself
        self._judged = asyncio.Condition()

    async def update(
        self, devices: Iterable[Device], verdicts: Mapping[str, bool], running: Collection[str] | None = None
    ) -> Trials:
        """Take note of what the driver knows.

        Args:
            devices: all that take trials.
            verdicts: name of a lost device → whether its process died by itself, not with its node.
            running: trials that had not ended a moment ago; what others hold or wait for is dropped. None: not known.

        Returns:
            Where the trials are.
        """
        self._devices = {device.client.name: device for device in devices}
        self._fastest = max((device.speed for device in self._devices.values()), default=0.0)
        if running is not None:
            now = self._clock()
            ended = {it for it, when in self._asked.items() if it not in running and now - when > _LIST_AGE}
            for trial_id in ended:
                self._drop(trial_id)
                del self._asked[trial_id]
            self._requests = [request for request in self._requests if request.trial_id not in ended]
        if not verdicts.items() <= self._verdicts.items():
            async with self._judged:
                self._verdicts.update(verdicts)
                self._judged.notify_all()
        self._give()
        on: dict[str, list[str]] = {}
        for trial_id, name in self._given.items():
            on.setdefault(name, []).append(trial_id)
        return Trials(on, frozenset(self._gone))

    async def acquire(
        self, trial_id: str, precision: str, alone: bool = False, full: str = "", gone: Sequence[str] = ()
    ) -> DeviceClient:
        """Wait for a device with a free slot.

        Args:
            trial_id: who asks; what it had before is free.
            precision: that the device must be capable of.
            alone: whether it wants a device to itself, because it may be what workers die of.
            full: name of a device that has just refused it for want of room.
            gone: names of devices that it has lost.
        """
        self._gone.update(gone)
        self._drop(trial_id)
        self._asked[trial_id] = self._clock()
        if full:
            self._full[full] = (self._loads[full], self._clock())
        self._requests = [request for request in self._requests if request.trial_id != trial_id]  # a dead proxy's
        request = _Request(trial_id, precision, alone)
        self._requests.append(request)
        self._give()
        return await request.answer

    async def better(self, trial_id: str, precision: str) -> bool:
        """Whether a trial that rests should move: it would be done sooner on another device, one more of its trials."""
        now = self._devices.get(self._given.get(trial_id, ""))
        if now is None or self._requests or now.client.name in self._alone:
            return False
        stays = self._time(now, self._loads[now.client.name])
        return any(
            self._time(device, self._loads[name] + 1) < stays
            for name, device in self._devices.items()
            if name != now.client.name and self._may_take(device, precision) and self._has_room(device, False)
        )

    async def release(self, trial_id: str) -> None:
        """The trial needs no device any more."""
        self._drop(trial_id)
        self._give()

    async def died_by_themselves(self, lost: Sequence[str]) -> list[str]:
        """Those of some lost devices whose process died by itself. Waits until that is known of all of them."""
        async with self._judged:
            await self._judged.wait_for(lambda: all(name in self._verdicts for name in lost))
        return [name for name in lost if self._verdicts[name]]

    def _drop(self, trial_id: str) -> None:
        name = self._given.pop(trial_id, None)
        if name is None:
            return
        self._loads[name] -= 1
        if self._alone.get(name) == trial_id:
            del self._alone[name]

    def _give(self) -> None:
        """Serve who can be served, in the order in which they asked."""
        kept_empty: set[str] = set()  # for who wants one alone, and waits for its trials to end
        for request in list(self._requests):
            able = [
                device
                for name, device in self._devices.items()
                if name not in kept_empty and self._may_take(device, request.precision)
            ]
            chosen = min((it for it in able if self._has_room(it, request.alone)), key=self._order, default=None)
            if chosen is None:
                if request.alone and able:
                    kept_empty.add(min(able, key=lambda device: self._loads[device.client.name]).client.name)
                continue
            self._requests.remove(request)
            if request.answer.done():  # its caller is gone
                continue
            self._given[request.trial_id] = chosen.client.name
            self._loads[chosen.client.name] += 1
            if request.alone:
                self._alone[chosen.client.name] = request.trial_id
            request.answer.set_result(chosen.client)

    def _order(self, device: Device) -> tuple[float, int, float, str]:
        """The best first."""
        name = device.client.name
        load = self._loads[name]
        return self._time(device, load + 1), self._slowness(device), load / device.slots, name

    def _time(self, device: Device, trials: int) -> float:
        """What a step of so many trials takes, in those of one trial on the fastest device."""
        return float(trials * 2 ** self._slowness(device))

    def _may_take(self, device: Device, precision: str) -> bool:
        name = device.client.name
        return precision not in device.unfit and name not in self._gone and name not in self._alone

    def _slowness(self, device: Device) -> int:
        """How often its speed must be doubled to be the fastest device's; small differences do not count."""
        return round(math.log2(self._fastest / device.speed)) if device.speed else 0

    def _has_room(self, device: Device, alone: bool) -> bool:
        name, load = device.client.name, self._loads[device.client.name]
        if alone:
            return load == 0
        had, when = self._full.get(name, (math.inf, 0.0))
        return load < device.slots and (load < had or self._clock() - when > _BELIEVED_FULL)


class DispatcherActor(Dispatcher):
    """The dispatcher in a process of its own, which ends at once on SIGTERM.

    Ray's own handler takes no more calls and waits for those that are under way: trials that wait for a device would
    wait for one of which nobody could tell it any more.
    """

    def __init__(self) -> None:
        super().__init__()
        on_sigterm(lambda: os._exit(128 + signal.SIGTERM))
