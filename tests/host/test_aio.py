"""In an event loop nothing is held up, nothing is lost, and whoever waits hears of the end."""

from __future__ import annotations

import asyncio
import gc
import os

import pytest
from vqshm_harness import PATIENCE, descriptors, echo_spec

from vqshm import Device, Driver
from vqshm.errors import (
    CoordinatorGone,
    DeadlineExceeded,
    DeviceNeedsReset,
    InvalidState,
    OutOfBuffers,
    PeerGone,
    PeerViolation,
    RoleTaken,
)
from vqshm.host.aio import AsyncDevice, AsyncDriver


def run(main) -> object:
    """Run a coroutine, and fail instead of hanging."""
    return asyncio.run(asyncio.wait_for(main, PATIENCE))


async def echo_task(device: AsyncDevice, sessions: int = 1) -> int:
    """Serve some drivers; the number of chains."""
    served = 0
    for _ in range(sessions):
        async for chain in device:
            device.complete(chain, chain.writer().write(chain.reader().read()))
            served += 1
    return served


@pytest.fixture(autouse=True)
def flat():
    """No test leaves a descriptor open."""
    gc.collect()
    before = descriptors()
    yield
    gc.collect()
    assert descriptors() <= before + 2  # the nursery's pipes


# -- there and back ----------------------------------------------------------------------------------------------------


def test_five_hundred_requests_at_a_time_get_their_own_answers(served):
    async def main():
        async with await AsyncDriver.attach(served.name) as driver:
            words = [b"%d" % number for number in range(500)]
            assert await asyncio.gather(*(driver.request(word, 64) for word in words)) == words
            assert driver.driver.in_flight == 0
            assert driver.driver.ports[0].queue.num_free == 64

    run(main())


def test_both_roles_live_in_one_loop(region):
    async def main():
        async with await AsyncDevice.attach(region.name) as device:
            serving = asyncio.create_task(echo_task(device, 3))
            for _ in range(3):
                async with await AsyncDriver.attach(region.name) as driver:
                    assert await driver.request(b"in one loop", 64) == b"in one loop"
                    assert await driver.request([b"a", b"b"], [1, 1]) == b"ab"
            assert await serving == 6

    run(main())


def test_several_queues_are_served_at_a_time(make_region):
    region = make_region(echo_spec(queues=4))
    region.echo()

    async def main():
        async with await AsyncDriver.attach(region.name) as driver:
            words = [(b"%d" % number, number % 4) for number in range(400)]
            answers = await asyncio.gather(*(driver.request(word, 64, queue=queue) for word, queue in words))
            assert answers == [word for word, _ in words]

    run(main())


def test_the_loop_goes_on_while_requests_wait(region):
    async def main():
        async with await AsyncDevice.attach(region.name), await AsyncDriver.attach(region.name) as driver:
            waiting = asyncio.create_task(driver.request(b"x", 8))
            for _ in range(100):
                await asyncio.sleep(0)
            assert not waiting.done()
            waiting.cancel()

    run(main())


def test_a_busy_device_lets_other_tasks_have_their_turn(make_region, start):
    region = make_region()

    async def main():
        async with await AsyncDevice.attach(region.name) as device:
            flood = start(flooding, region.name)
            flood.hear()
            ticks = served = 0

            async def tick():
                nonlocal ticks
                while True:
                    ticks += 1
                    await asyncio.sleep(0)

            ticking = asyncio.create_task(tick())
            async for chain in device:
                device.complete(chain)
                served += 1
                if served == 5000:
                    break
            ticking.cancel()
            assert ticks > 20
            flood.kill()

    run(main())


def flooding(me, name):
    with Driver.attach(name) as driver:
        me.send("up")
        while True:
            for request in driver.completed(0.5) if driver.in_flight > 32 else ():
                request.release()
            driver.submit([b"x"])
            driver.kick()


# -- room, deadlines, cancelling ---------------------------------------------------------------------------------------


def test_requests_wait_for_room_and_fail_where_there_never_is_any(served):
    async def main():
        async with await AsyncDriver.attach(served.name) as driver:
            pool = driver.driver.ports[0].pool
            piece = pool.free // 4
            data = [os.urandom(piece) for _ in range(8)]
            assert await asyncio.gather(*(driver.request(each, piece) for each in data)) == data
            with pytest.raises(OutOfBuffers):
                await driver.request(b"x" * (pool.size + 1))

    run(main())


def test_a_deadline_says_who_is_waited_for_and_the_buffers_come_back_later(region):
    async def main():
        async with await AsyncDevice.attach(region.name) as device, await AsyncDriver.attach(region.name) as driver:
            free = driver.driver.ports[0].pool.free
            for timeout in (0, 0.02):
                with pytest.raises(DeadlineExceeded, match=f"process {os.getpid()}, is alive"):
                    await driver.request(b"x" * 100, 100, timeout=timeout)
            assert driver.driver.ports[0].pool.free < free
            serving = asyncio.create_task(echo_task(device))
            assert await driver.request(b"y", 1) == b"y"
            assert driver.driver.ports[0].pool.free == free
            await driver.close()
            assert await serving in {2, 3}  # what expired at once may never have been sent

    run(main())


def test_a_cancelled_request_harms_nobody(served):
    async def main():
        async with await AsyncDriver.attach(served.name) as driver:
            free = driver.driver.ports[0].pool.free
            for _ in range(20):
                tasks = [asyncio.create_task(driver.request(b"%d" % number, 8)) for number in range(100)]
                await asyncio.sleep(0)
                for task in tasks[::2]:
                    task.cancel()
                answers = await asyncio.gather(*tasks, return_exceptions=True)
                assert answers[1::2] == [b"%d" % number for number in range(1, 100, 2)]
                assert all(isinstance(each, asyncio.CancelledError | bytes) for each in answers)
            assert await driver.request(b"x", 1) == b"x"
            assert driver.driver.in_flight == 0
            assert driver.driver.ports[0].pool.free == free

    run(main())


def test_a_request_that_is_cancelled_when_its_answer_is_there_gives_its_buffers_back(region):
    async def main():
        async with await AsyncDevice.attach(region.name) as device, await AsyncDriver.attach(region.name) as driver:
            free = driver.driver.ports[0].pool.free
            task = asyncio.create_task(driver.request(b"x", 8))
            device.complete(await anext(device))
            driver._pump()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert driver.driver.ports[0].pool.free == free

    run(main())


def test_attaching_that_was_cancelled_keeps_no_role(region):
    async def main():
        before = descriptors()
        with pytest.raises(TimeoutError):  # there is no device
            await asyncio.wait_for(AsyncDriver.attach(region.name, timeout=0.5), 0.02)
        async with await AsyncDevice.attach(region.name) as device:  # now the attaching thread gets its driver
            serving = asyncio.create_task(echo_task(device, 1000))
            while True:
                try:
                    await (await AsyncDriver.attach(region.name)).close()
                    break
                except RoleTaken:
                    await asyncio.sleep(0.001)
            serving.cancel()
        del device, serving
        await asyncio.get_running_loop().shutdown_default_executor()
        await asyncio.sleep(0)
        gc.collect()
        assert descriptors() <= before

    run(main())


def test_errors_of_the_caller_are_the_caller_s(served):
    async def main():
        async with await AsyncDriver.attach(served.name) as driver:
            with pytest.raises(TypeError):
                await driver.request("text", 8)
            with pytest.raises(ValueError, match="queues"):
                await driver.request(b"x", 8, queue=7)
            assert driver.driver.in_flight == 0

    run(main())


# -- somebody goes -----------------------------------------------------------------------------------------------------


def hungry(me, name):
    """Takes everything and answers the first three."""
    with Device.attach(name) as device:
        me.send("up")
        device.wait_driver()
        for number, chain in enumerate(device):
            if number < 3:
                device.complete(chain, chain.writer().write(chain.reader().read()))
            me.send(number)


def test_the_death_of_the_device_fails_what_it_did_not_answer(region):
    actor = region.start(hungry)

    async def main():
        async with await AsyncDriver.attach(region.name) as driver:
            tasks = [asyncio.create_task(driver.request(b"%d" % number, 8)) for number in range(10)]
            await asyncio.sleep(0)
            while actor.hear() != 9:
                pass
            actor.kill()  # before this loop has reaped a single answer
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert answers[:3] == [b"0", b"1", b"2"]
            assert {type(each) for each in answers[3:]} == {PeerGone}
            with pytest.raises(PeerGone):
                await driver.request(b"x", 8)

    run(main())


def test_a_device_that_leaves_fails_what_it_did_not_answer(region):
    async def main():
        device = await AsyncDevice.attach(region.name)
        async with await AsyncDriver.attach(region.name) as driver:
            task = asyncio.create_task(driver.request(b"x", 8))
            await asyncio.sleep(0)
            await device.close()
            with pytest.raises(PeerGone):
                await task

    run(main())


def test_a_device_that_needs_a_reset_fails_the_requests_of_that_queue_only(make_region):
    region = make_region(echo_spec(queues=2))

    async def main():
        async with await AsyncDevice.attach(region.name) as device, await AsyncDriver.attach(region.name) as driver:
            broken = asyncio.create_task(driver.request(b"x", 8, queue=0))
            well = asyncio.create_task(driver.request(b"y", 8, queue=1))
            await device.wait_driver()
            device.device.needs_reset("enough", queue=0)
            with pytest.raises(DeviceNeedsReset, match="enough"):
                await broken
            assert not well.done()
            serving = asyncio.create_task(echo_task(device))
            assert await well == b"y"
            with pytest.raises(DeviceNeedsReset):
                await driver.request(b"x", 8, queue=0)
            assert await driver.request(b"z", 8, queue=1) == b"z"
            serving.cancel()

    run(main())


def test_a_device_that_breaks_a_rule_fails_the_requests_of_that_queue_only(make_region):
    region = make_region(echo_spec(queues=2))

    async def main():
        async with await AsyncDevice.attach(region.name) as device, await AsyncDriver.attach(region.name) as driver:
            broken = asyncio.create_task(driver.request(b"x", 8, queue=0))
            well = asyncio.create_task(driver.request(b"y", 8, queue=1))
            await device.wait_driver()
            layout = device.device.plan.queues[0].layout
            device.device.memory.write(layout.used_ring + 2, (500).to_bytes(2, "little"))
            device.device.calls[0].signal()
            with pytest.raises((PeerViolation, RuntimeError)):
                await broken
            serving = asyncio.create_task(echo_task(device))
            assert await well == b"y"
            serving.cancel()

    run(main())


def test_a_closing_region_ends_a_waiting_device(make_region):
    region = make_region()

    async def main():
        async with await AsyncDevice.attach(region.name) as device:
            serving = asyncio.create_task(echo_task(device))
            await asyncio.sleep(0)
            await asyncio.to_thread(region.coordinator.finish)
            with pytest.raises(InvalidState, match="closing"):
                await serving

    run(main())


def test_the_death_of_the_coordinator_does_not_stop_the_requests(make_region):
    region = make_region()
    region.echo()

    async def main():
        async with await AsyncDriver.attach(region.name) as driver:
            await asyncio.to_thread(region.coordinator.kill)
            for number in range(100):
                word = b"%d" % number
                assert await driver.request(word, 64) == word
            with pytest.raises(CoordinatorGone):
                driver.driver.reset()

    run(main())


def test_the_death_of_the_driver_ends_the_session(region, start):
    async def main():
        async with await AsyncDevice.attach(region.name) as device:
            actor = start(flooding, region.name)
            actor.hear()
            served = 0
            async for chain in device:
                device.complete(chain)
                served += 1
                if served == 100:
                    actor.kill()
            assert served >= 100
            async with await AsyncDriver.attach(region.name) as driver:
                serving = asyncio.create_task(echo_task(device))
                assert await driver.request(b"next", 8) == b"next"
                serving.cancel()

    run(main())


# -- the end -----------------------------------------------------------------------------------------------------------


def test_closing_fails_who_waits_and_may_be_done_twice(region):
    async def main():
        async with await AsyncDevice.attach(region.name) as device:
            driver = await AsyncDriver.attach(region.name)
            task = asyncio.create_task(driver.request(b"x", 8))
            await asyncio.sleep(0)
            await driver.close()
            await driver.close()
            with pytest.raises(InvalidState, match="closed"):
                await task
            with pytest.raises(InvalidState, match="closed"):
                await driver.request(b"x", 8)
            await device.close()
            await device.close()
            with pytest.raises(InvalidState, match="closed"):
                await device.wait_driver()

    run(main())


def test_regions_with_semaphores_are_refused_and_the_role_stays_free(make_region):
    region = make_region(notify="semaphore")

    async def main():
        for _ in range(2):
            with pytest.raises(InvalidState, match="semaphores"):
                await AsyncDevice.attach(region.name)
        with Device.attach(region.name), pytest.raises(InvalidState, match="semaphores"):
            await AsyncDriver.attach(region.name)

    run(main())
