"""Who is given which device, and who waits."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from sweeps.driver.device_client import Device, DeviceClient
from sweeps.driver.dispatcher import Dispatcher


def device(name: str, slots: int = 2, **more: Any) -> Device:
    return Device(DeviceClient(None, name, name), slots, **more)


class Asker:
    """Trials that ask, and what they were given so far."""

    def __init__(self, dispatcher: Dispatcher):
        self.dispatcher = dispatcher
        self.waiting: dict[str, asyncio.Task[DeviceClient]] = {}

    async def ask(self, trial_id: str, precision: str = "fp32", **more: Any) -> str:
        """The device that it was given; empty where it waits."""
        self.waiting[trial_id] = asyncio.create_task(self.dispatcher.acquire(trial_id, precision, **more))
        return await self.given(trial_id)

    async def given(self, trial_id: str) -> str:
        for _ in range(5):
            await asyncio.sleep(0)
        task = self.waiting[trial_id]
        return task.result().name if task.done() else ""


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 30))


def test_trials_are_spread_over_equal_devices_and_wait_where_all_are_taken() -> None:
    async def scenario() -> None:
        asker = Asker(dispatcher := Dispatcher())
        assert await asker.ask("t0") == "", "there is no device yet"
        await dispatcher.update([device("a"), device("b")], {})
        assert await asker.given("t0") == "a"
        assert [await asker.ask(name) for name in ("t1", "t2", "t3", "t4", "t5")] == ["b", "a", "b", "", ""]
        await dispatcher.release("t2")
        assert (await asker.given("t4"), await asker.given("t5")) == ("a", "")
        trials = await dispatcher.update([device("a"), device("b"), device("c")], {})
        assert await asker.given("t5") == "c"
        assert {name: sorted(on) for name, on in trials.on.items()} == {
            "a": ["t0", "t4"],
            "b": ["t1", "t3"],
            "c": ["t5"],
        }

    run(scenario())


def test_no_device_is_empty_while_trials_double_up_on_one_that_measured_a_little_faster() -> None:
    async def scenario() -> None:
        asker = Asker(dispatcher := Dispatcher())
        await dispatcher.update([device("a", 4, speed=30.0), device("b", 4, speed=50.0), device("c", 4, speed=5.0)], {})
        assert [await asker.ask(f"t{n}") for n in range(5)] == ["b", "b", "a", "b", "b"]
        for trial_id in ("t0", "t2"):
            assert not await dispatcher.better(trial_id, "fp32"), "and there they stay"

    run(scenario())


def test_the_fast_devices_are_filled_first_and_small_differences_do_not_count() -> None:
    async def scenario() -> None:
        asker = Asker(dispatcher := Dispatcher())
        await dispatcher.update([device("slow", speed=40.0), device("a", speed=100.0), device("b", speed=90.0)], {})
        assert [await asker.ask(f"t{n}") for n in range(6)] == ["a", "b", "a", "b", "slow", "slow"]

    run(scenario())


def test_a_precision_goes_where_it_works_and_does_not_hold_up_others() -> None:
    async def scenario() -> None:
        asker = Asker(dispatcher := Dispatcher())
        await dispatcher.update([device("a", 3, unfit=frozenset(["nf4"])), device("b", 1)], {})
        assert [await asker.ask(name, "nf4") for name in ("t0", "t1")] == ["b", ""]
        assert await asker.ask("t2") == "a"

    run(scenario())


def test_a_device_that_says_that_it_is_full_is_asked_again_once_a_trial_has_left_it_or_later() -> None:
    async def scenario() -> None:
        now = [0.0]
        asker = Asker(dispatcher := Dispatcher(lambda: now[0]))
        await dispatcher.update([device("a", 3)], {})
        assert [await asker.ask(name) for name in ("t0", "t1", "t2")] == ["a"] * 3
        assert await asker.ask("t2", full="a") == ""
        await dispatcher.release("t1")
        assert await asker.given("t2") == "a"
        await dispatcher.release("t0")
        assert await asker.ask("t2", full="a") == "", "it is alone there, and was refused"
        now[0] += 11
        await dispatcher.update([device("a", 3)], {})
        assert await asker.given("t2") == "a"

    run(scenario())


def test_one_that_wants_a_device_to_itself_gets_it_before_those_that_ask_later() -> None:
    async def scenario() -> None:
        asker = Asker(dispatcher := Dispatcher())
        await dispatcher.update([device("a")], {})
        assert await asker.ask("t0") == "a"
        assert [await asker.ask("t1", alone=True), await asker.ask("t2")] == ["", ""]
        await dispatcher.release("t0")
        assert [await asker.given("t1"), await asker.given("t2")] == ["a", ""]
        await dispatcher.release("t1")
        assert await asker.given("t2") == "a"

    run(scenario())


def test_a_lost_device_is_not_given_again_and_its_end_is_judged_by_the_driver() -> None:
    async def scenario() -> None:
        asker = Asker(dispatcher := Dispatcher())
        await dispatcher.update([device("a"), device("b")], {})
        assert await asker.ask("t0") == "a"
        assert await asker.ask("t0", gone=["a"]) == "b"
        assert (await dispatcher.update([device("a"), device("b")], {})).gone == {"a"}
        judged = asyncio.create_task(dispatcher.died_by_themselves(["a", "b"]))
        await dispatcher.update([], {"a": True})
        await asyncio.sleep(0)
        assert not judged.done()
        await dispatcher.update([], {"a": True, "b": False})
        assert await judged == ["a"]

    run(scenario())


def test_what_a_trial_held_is_free_once_the_driver_says_that_it_has_ended() -> None:
    """Its proxy died before it gave its slot back, and Tune starts no other one."""

    async def scenario() -> None:
        now = [0.0]
        asker = Asker(dispatcher := Dispatcher(clock=lambda: now[0]))
        await dispatcher.update([device("a", 1)], {})
        assert [await asker.ask("t0"), await asker.ask("t1"), await asker.ask("t2")] == ["a", "", ""]
        now[0] = 60.0
        await dispatcher.update([device("a", 1)], {}, ["t2"])
        assert [await asker.given("t1"), await asker.given("t2")] == ["", "a"]

    run(scenario())


def test_a_trial_that_has_just_begun_is_not_dropped_because_the_drivers_list_is_older() -> None:
    async def scenario() -> None:
        asker = Asker(dispatcher := Dispatcher())
        await dispatcher.update([device("a", 1)], {})
        assert [await asker.ask("t0"), await asker.ask("t1")] == ["a", ""]
        assert (await dispatcher.update([device("a", 1)], {}, [])).on == {"a": ["t0"]}
        await dispatcher.release("t0")
        assert await asker.given("t1") == "a"

    run(scenario())


def test_a_trial_should_move_to_a_device_that_is_emptier_by_two_or_faster() -> None:
    async def scenario() -> None:
        asker = Asker(dispatcher := Dispatcher())
        a, b = device("a", 4, speed=50.0), device("b", 4, speed=50.0)
        await dispatcher.update([a], {})
        assert [await asker.ask(name) for name in ("t0", "t1")] == ["a", "a"]
        assert not await dispatcher.better("t0", "fp32")
        await dispatcher.update([a, b], {})
        assert await dispatcher.better("t0", "fp32")
        assert await asker.ask("t0") == "b"
        assert not await dispatcher.better("t1", "fp32"), "one each"
        await dispatcher.update([a, b, device("fast", 1, unfit=frozenset(["nf4"]), speed=200.0)], {})
        assert await dispatcher.better("t1", "fp32")
        assert not await dispatcher.better("t1", "nf4")
        assert await asker.ask("t1") == "fast"
        assert not await dispatcher.better("t0", "fp32"), "the fast one is full"

    run(scenario())
