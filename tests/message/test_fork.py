"""A fan or an asynchronous end inherited through fork is of no use in the child, and the parent goes on.

For senders and receivers see test_ends; for drivers, devices and coordinators see tests/host.
"""

from __future__ import annotations

import asyncio
import os

import pytest
from vqshm_harness import PATIENCE

from vqshm import Receiver, Sender
from vqshm.errors import VqshmError
from vqshm.host.aio import AsyncDevice, AsyncDriver
from vqshm.message import Fanin, Fanout
from vqshm.message.aio import AsyncReceiver, AsyncSender

pytestmark = pytest.mark.fault("D18")


def verdict(call) -> str:
    """The name of what a call raises."""
    try:
        call()
    except VqshmError as error:
        return type(error).__name__
    return "nothing"


def in_child(me, calls) -> None:
    """Let a forked child try them all, and say what came of it."""
    pid = os.fork()
    if not pid:
        me.send({what: verdict(call) for what, call in calls.items()})
        os._exit(0)
    os.waitpid(pid, 0)


def forking_fanout(me, name, mode):
    with Fanout.attach(name, mode=mode) as fan:
        fan.send(b"before")
        in_child(
            me,
            {
                "send": lambda: fan.send(b"child"),
                "send_many": lambda: fan.send_many([b"child"]),
                "reserve": lambda: fan.reserve(5).commit(),
                "flush": fan.flush,
                "put": lambda: fan.put(b"child"),
                "close": fan.close,
            },
        )
        fan.send(b"after")


@pytest.mark.parametrize("mode", ["share", "broadcast"])
def test_a_forked_fanout_refuses_and_its_parent_goes_on(make_channel, start, mode):
    channel = make_channel("s0r0", "s0r1")
    with Receiver.attach(channel.name, "s0r0") as one, Receiver.attach(channel.name, "s0r1") as two:
        actor = start(forking_fanout, channel.name, mode)
        seen = actor.hear()
        assert seen.pop("close") == "nothing"
        assert seen == dict.fromkeys(seen, "ForkedHandle")
        got = [*one, *two]
        assert sorted(got) == sorted([b"before", b"after"] * (2 if mode == "broadcast" else 1))


def forking_fanin(me, name):
    with Fanin.attach(name) as fan:
        me.send("up")
        me.send(fan.recv())
        in_child(
            me,
            {
                "recv": fan.recv,
                "recv(0)": lambda: fan.recv(0),
                "recv_many": lambda: fan.recv_many(3),
                "recv_view": fan.recv_view,
                "iter": lambda: list(fan),
                "serve": lambda: fan.serve(bytes),
                "get": fan.get,
                "close": fan.close,
            },
        )
        for message in fan:
            me.send(message)


def test_a_forked_fanin_refuses_and_its_parent_gets_every_message(make_channel):
    """One that had taken more from its lanes than it handed out, too: that is the parent's."""
    channel = make_channel("s0r0", "s1r0")
    actor = channel.start(forking_fanin)
    with Sender.attach(channel.name, "s0r0") as sender, Sender.attach(channel.name, "s1r0"):
        sender.send_many([b"1", b"2", b"3"])
        assert actor.hear() == b"1"
        seen = actor.hear()
        assert seen.pop("close") == "nothing"
        assert seen == dict.fromkeys(seen, "ForkedHandle")
        assert [actor.hear() for _ in range(2)] == [b"2", b"3"]


def now(coroutine):
    """Run what needs no event loop until it waits."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()


def forking_async_ends(me, name):
    async def main():
        async with await AsyncReceiver.attach(name) as receiver, await AsyncSender.attach(name) as sender:
            await sender.send(b"before")
            in_child(
                me,
                {
                    "send": lambda: now(sender.send(b"child")),
                    "send_many": lambda: now(sender.send_many([b"child"])),
                    "flush": lambda: now(sender.flush()),
                    "recv": lambda: now(receiver.recv()),
                    "recv_many": lambda: now(receiver.recv_many(3)),
                    "recv_view": lambda: now(receiver.recv_view()),
                },
            )
            await sender.send(b"after")
            me.send([await receiver.recv(PATIENCE) for _ in range(2)])

    asyncio.run(main())


def test_forked_asynchronous_ends_refuse_and_their_parent_goes_on(make_channel, start):
    actor = start(forking_async_ends, make_channel().name)
    seen = actor.hear()
    assert seen == dict.fromkeys(seen, "ForkedHandle")
    assert actor.hear() == [b"before", b"after"]


def forking_async_driver(me, name):
    async def main():
        async with await AsyncDevice.attach(name) as device, await AsyncDriver.attach(name) as driver:

            async def serve():
                async for chain in device:
                    device.complete(chain, chain.writer().write(chain.reader().read()))

            serving = asyncio.create_task(serve())
            me.send(await driver.request(b"before", 8, timeout=PATIENCE))
            in_child(
                me,
                {
                    "driver.reap": driver.driver.reap,  # `request` finds no running event loop in a child
                    "next": lambda: now(device.__anext__()),
                    "wait_driver": lambda: now(device.wait_driver()),
                },
            )
            me.send(await driver.request(b"after", 8, timeout=PATIENCE))
            serving.cancel()

    asyncio.run(main())


def test_forked_asynchronous_roles_refuse_and_their_parent_goes_on(make_region, start):
    actor = start(forking_async_driver, make_region().name)
    assert actor.hear() == b"before"
    seen = actor.hear()
    assert seen == dict.fromkeys(seen, "ForkedHandle")
    assert actor.hear() == b"after"
