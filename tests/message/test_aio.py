"""In an event loop nothing is held up, and who is cancelled has lost nothing and sent nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest
from vqshm_harness import PATIENCE

from vqshm import Fanin, Fanout, Receiver, Sender
from vqshm.errors import (
    EndOfMessages,
    InvalidState,
    MessageTooLarge,
    NoMessage,
    NoRoom,
    PeerGone,
    PeerViolation,
    QueueBroken,
)
from vqshm.message.aio import AsyncReceiver, AsyncSender

FOUR_IN = [f"s{number}r0" for number in range(4)]


def run(main) -> object:
    """Run a coroutine, and fail instead of hanging."""
    return asyncio.run(asyncio.wait_for(main, PATIENCE))


async def settle() -> None:
    """Let every task go on until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


# -- actors ------------------------------------------------------------------------------------------------------------


def produce(me, region, lane, count):
    """Send numbered messages, then stay until the test says so."""
    with Sender.attach(region, lane) as sender:
        sender.send_many(b"%s %d" % (lane.encode(), number) for number in range(count))
        me.send("sent")
        me.recv()


def consume(me, region, lane):
    """Receive until the sender leaves, and tell what came."""
    with Receiver.attach(region, lane) as receiver:
        me.send("ready")
        me.send(list(receiver))


def send_too_much(me, region):
    """Send a message that is too long; when told so reset the lane and send another one."""
    with Sender.attach(region) as sender:
        sender.send(bytes(101))
        me.recv()
        sender.reset(PATIENCE)
        sender.send(b"anew")
        me.recv()


# -- there and back ----------------------------------------------------------------------------------------------------


def test_messages_flow_both_ends_in_one_loop(make_channel):
    name = make_channel().name

    async def take(receiver):
        return [message async for message in receiver]

    async def main():
        async with await AsyncReceiver.attach(name) as receiver:
            taking = asyncio.create_task(take(receiver))
            async with await AsyncSender.attach(name) as sender:
                for number in range(500):  # far more than there is room for
                    await sender.send(b"%d" % number)
                await sender.send_many(b"%d" % number for number in range(500, 1000))
                await sender.flush()
            assert await taking == [b"%d" % number for number in range(1000)]

    run(main())


def test_another_process_sends_and_the_loop_goes_on_meanwhile(make_channel, start):
    name = make_channel().name
    turns = 0

    async def turn():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main():
        async with await AsyncReceiver.attach(name) as receiver:
            turning = asyncio.create_task(turn())
            producer = start(produce, name, "lane", 300)
            got = [await receiver.recv() for _ in range(300)]
            assert got == [b"lane %d" % number for number in range(300)]
            producer.kill()
            with pytest.raises(EndOfMessages) as caught:
                await receiver.recv()
            assert caught.value.facts == {"pid": producer.pid, "ended": True}
            turning.cancel()

    run(main())
    assert turns > 1


def test_a_fan_in_is_awaited_like_a_receiver(make_channel, start):
    name = make_channel(*FOUR_IN).name

    async def main():
        async with AsyncReceiver(Fanin.attach(name)) as receiver:
            producers = [start(produce, name, lane, 200) for lane in FOUR_IN]
            got = [await receiver.recv() for _ in range(800)]
            for lane in FOUR_IN:
                mine = [message for message in got if message.startswith(lane.encode())]
                assert mine == [b"%s %d" % (lane.encode(), number) for number in range(200)]
            producers[0].kill()
            for producer in producers[1:]:
                producer.say("leave")
            with pytest.raises(EndOfMessages):
                await receiver.recv()
            assert {who.lane: who.pid for who in receiver.end.departed} == {
                lane: producer.pid for lane, producer in zip(FOUR_IN, producers, strict=True)
            }

    run(main())


@pytest.mark.parametrize("mode", ["share", "broadcast"])
def test_a_fan_out_is_awaited_like_a_sender(make_channel, start, mode):
    name = make_channel("s0r0", "s0r1").name
    workers = [start(consume, name, lane) for lane in ("s0r0", "s0r1")]
    for worker in workers:
        assert worker.hear() == "ready"
    sent = [b"%d" % number for number in range(1000)]

    async def main():
        async with AsyncSender(Fanout.attach(name, mode=mode)) as sender:
            await sender.send_many(sent[:500])
            for message in sent[500:]:
                await sender.send(message)
            await sender.flush()

    run(main())
    received = [worker.hear() for worker in workers]
    if mode == "broadcast":
        assert received == [sent, sent]
    else:
        assert sorted((message for messages in received for message in messages), key=int) == sent


def test_views_and_answers(pair):
    sender, receiver = pair()

    async def main():
        there, here = AsyncSender(sender), AsyncReceiver(receiver)
        await there.send([b"in ", b"pieces"])
        with await here.recv_view() as view:
            assert bytes(view) == b"in pieces"
        serving = asyncio.create_task(here.serve(answer))
        assert await there.call(b"abc", 16, PATIENCE) == b"cba"
        answers = await asyncio.gather(*(there.call(b"%d" % number, 16) for number in range(100, 200)))
        assert answers == [(b"%d" % number)[::-1] for number in range(100, 200)]
        there.close()
        await serving
        here.close()

    async def answer(view):
        await asyncio.sleep(0)
        return bytes(view)[::-1]

    run(main())


# -- cancelled ---------------------------------------------------------------------------------------------------------


def test_a_cancelled_recv_loses_no_message(pair):
    sender, receiver = pair()
    got = []

    async def main():
        here = AsyncReceiver(receiver)
        for number in range(100):
            waiting = asyncio.create_task(here.recv())
            await settle()
            sender.send(b"%d" % number)
            if number % 3 == 0:
                await settle()
            elif number % 3 == 1:
                await asyncio.sleep(0)
            waiting.cancel()
            done = await asyncio.gather(waiting, return_exceptions=True)
            got.extend(message for message in done if isinstance(message, bytes))
        while True:
            try:
                got.append(await here.recv(0))
            except NoMessage:
                return

    run(main())
    assert got == [b"%d" % number for number in range(100)]


TURNS = 7  # of the loop, in which a task comes through all of its awaits


@pytest.mark.fault("D19")
@pytest.mark.parametrize("cancel_at", range(TURNS))
def test_whichever_await_is_cancelled_recv_loses_nothing_and_send_sends_once_or_never(make_channel, cancel_at):
    name = make_channel().name
    receiver = Receiver.attach(name)
    sender = Sender.attach(name)

    async def between(task, happen, at):
        for turn in range(TURNS):
            if turn == at:
                happen()
            if turn == cancel_at:
                task.cancel()
            await asyncio.sleep(0)
        return (await asyncio.gather(task, return_exceptions=True))[0]

    async def main():
        here, there = AsyncReceiver(receiver), AsyncSender(sender)
        for at in range(TURNS):
            word = b"%d" % at
            got = await between(asyncio.create_task(here.recv()), lambda: sender.send(word), at)  # noqa: B023
            assert (got if isinstance(got, bytes) else await here.recv(PATIENCE)) == word
            with pytest.raises(NoMessage):
                receiver.recv(0)
        for at in range(TURNS):
            count = 0
            with contextlib.suppress(NoRoom):
                while True:
                    sender.send(b"%d" % count, 0)
                    count += 1
            came = []
            outcome = await between(asyncio.create_task(there.send(b"x")), lambda: came.extend(drained(receiver)), at)  # noqa: B023
            came += drained(receiver)
            assert came == [b"%d" % number for number in range(count)] + ([b"x"] if outcome is None else [])

    run(main())
    sender.close()
    receiver.close()


def drained(receiver):
    """Everything that is there, given back."""
    messages = []
    with contextlib.suppress(NoMessage):
        while True:
            messages += receiver.recv_many(1000, 0)
    return messages


def test_a_call_without_an_answer_ends_at_its_deadline_and_its_room_comes_back(pair):
    sender, receiver = pair()

    async def main():
        there = AsyncSender(sender)
        with pytest.raises(NoMessage):
            await there.call(b"first", 16, 0.01)
        waiting = asyncio.create_task(there.call(b"second", 16))
        await settle()
        waiting.cancel()
        assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError)
        assert [receiver.recv(0), receiver.recv(0)] == [b"first", b"second"]
        await there.flush(PATIENCE)

    run(main())
    assert sender._outlet.arena.free == sender._outlet.arena.size
    assert sender._outlet.calls == 0


@pytest.mark.parametrize("fan", [False, True])
def test_a_cancelled_send_has_sent_nothing(make_channel, fan):
    name = make_channel("s0r0", "s0r1").name if fan else make_channel().name
    lanes = ("s0r0", "s0r1") if fan else ("lane",)
    ends = [Receiver.attach(name, lane) for lane in lanes]

    async def main():
        async with AsyncSender(Fanout.attach(name, mode="broadcast") if fan else Sender.attach(name)) as sender:
            count = 0
            with contextlib.suppress(NoRoom):
                while count < 1000:
                    await sender.send(b"%d" % count, 0)
                    count += 1
            waiting = asyncio.create_task(sender.send(b"cancelled"))
            patient = asyncio.create_task(sender.send(b"patient"))
            await settle()
            assert not waiting.done()
            waiting.cancel()
            await settle()
            assert waiting.cancelled()
            received = [end.recv_many(1000) for end in ends]
            for end in ends:
                with pytest.raises(NoMessage):  # so that everything was given back
                    end.recv(0)
            await patient
            for end, messages in zip(ends, received, strict=True):
                assert [*messages, end.recv()] == [*(b"%d" % number for number in range(count)), b"patient"]

    run(main())
    for end in ends:
        end.close()


def test_whoever_waits_longest_is_served_first(pair):
    sender, receiver = pair()

    async def main():
        here = AsyncReceiver(receiver)
        waiting = [asyncio.create_task(here.recv()) for _ in range(5)]
        await settle()
        waiting[1].cancel()
        sender.send_many([b"0", b"2", b"3", b"4"])
        rest = [waiter for waiter in waiting if waiter is not waiting[1]]
        assert await asyncio.gather(*rest) == [b"0", b"2", b"3", b"4"]
        assert waiting[1].cancelled()

    run(main())


# -- the end and the deadline ------------------------------------------------------------------------------------------


def test_deadlines_say_who_is_waited_for(pair):
    sender, receiver = pair()

    async def main():
        there, here = AsyncSender(sender), AsyncReceiver(receiver)
        await there.send(b"hello")
        assert await here.recv() == b"hello"
        for timeout in (0, 0.01):
            with pytest.raises(NoMessage, match=f"the sender, process {os.getpid()}, is alive"):
                await here.recv(timeout)
        with pytest.raises(NoRoom, match=f"the receiver, process {os.getpid()}, is alive") as caught:
            await there.send_many([b"x"] * 100, 0.01)
        assert caught.value.facts["sent"] == 64
        with pytest.raises(NoRoom):
            await there.flush(0.01)
        with pytest.raises(ValueError, match="timeout"):
            await here.recv(-1)
        with pytest.raises(MessageTooLarge):
            await there.send(bytes(1 << 20))
        assert len(await here.recv_many(1000)) == 64

    run(main())


def test_who_waits_for_room_hears_that_the_receiver_died(make_channel, start):
    name = make_channel().name
    consumer = start(consume, name, "lane")
    assert consumer.hear() == "ready"
    consumer.freeze()

    async def main():
        async with await AsyncSender.attach(name, timeout=PATIENCE) as sender:
            waiting = asyncio.create_task(sender.send_many([b"x"] * 1000))
            await settle()
            assert not waiting.done()
            consumer.kill()
            with pytest.raises(PeerGone):
                await waiting

    run(main())


def test_closing_wakes_who_waits(pair):
    _, receiver = pair()

    async def main():
        here = AsyncReceiver(receiver)
        waiting = asyncio.create_task(here.recv())
        await settle()
        here.close()
        with pytest.raises(InvalidState):
            await waiting

    run(main())


def test_an_idle_loop_is_not_woken(make_channel):
    name = make_channel().name

    async def main():
        async with await AsyncReceiver.attach(name) as receiver, await AsyncSender.attach(name) as sender:
            waiting = asyncio.create_task(receiver.recv())
            await settle()
            looks = 0
            wake = receiver._wake

            def count():
                nonlocal looks
                looks += 1
                wake()

            receiver._wake = count
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(waiting), 0.05)
            idle = looks
            await sender.send(b"x")
            assert await waiting == b"x"
            assert idle <= 1  # the one wait that had begun before may end in a look

    run(main())


def test_semaphores_are_refused(make_channel):
    name = make_channel(notify="semaphore").name

    async def main():
        with pytest.raises(InvalidState, match="semaphores"):
            await AsyncReceiver.attach(name)
        with Receiver.attach(name):  # the role was given back
            pass

    run(main())


def test_who_is_cancelled_while_attaching_leaves_no_role_taken(make_channel, start):
    name = make_channel().name

    async def main():
        attaching = asyncio.create_task(AsyncSender.attach(name, timeout=PATIENCE))
        await settle()
        attaching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attaching

    consumer = None

    async def late():
        nonlocal consumer
        await main()
        consumer = start(consume, name, "lane")  # lets the forgotten attaching end
        assert consumer.hear() == "ready"

    run(late())
    assert consumer.hear() == []


# -- behind a violation ------------------------------------------------------------------------------------------------


def test_behind_a_violation_the_reset_of_the_sender_is_waited_for_without_spinning(make_channel, start):
    name = make_channel().name

    async def main():
        async with await AsyncReceiver.attach(name, limit=100) as receiver:
            sender = start(send_too_much, name)
            with pytest.raises(PeerViolation):
                await receiver.recv()
            for timeout in (0, 0.01):
                with pytest.raises(QueueBroken, match="must reset it"):
                    await receiver.recv(timeout)
            waiting = asyncio.create_task(receiver.recv())
            looks = 0

            def look(given):
                nonlocal looks
                looks += 1
                return recv(given)

            recv, receiver.end.recv = receiver.end.recv, look
            await asyncio.sleep(0.1)
            assert looks < 10
            assert not waiting.done()
            sender.say("go on")
            assert await waiting == b"anew"
            sender.say("leave")

    run(main())


@pytest.mark.parametrize("end", ["sender", "coordinator"])
def test_behind_a_violation_nothing_is_waited_for_that_cannot_come(make_channel, start, end):
    channel = make_channel()

    async def main():
        async with await AsyncReceiver.attach(channel.name, limit=100) as receiver:
            sender = start(send_too_much, channel.name)
            with pytest.raises(PeerViolation):
                await receiver.recv()
            waiting = asyncio.create_task(receiver.recv())
            await settle()
            if end == "coordinator":
                channel.coordinator.kill()
                with pytest.raises(QueueBroken, match="must reset it"):
                    await waiting
            else:
                sender.kill()
                async with await AsyncSender.attach(channel.name, timeout=PATIENCE) as other:
                    await other.send(b"of the next one")
                    assert await waiting == b"of the next one"

    run(main())


def test_a_fan_in_an_event_loop_has_its_limit_and_waits_for_a_reset(make_channel, start):
    name = make_channel().name

    async def main():
        async with AsyncReceiver(Fanin.attach(name, limit=100)) as receiver:
            sender = start(send_too_much, name)
            with pytest.raises(PeerViolation):
                await receiver.recv()
            with pytest.raises(NoMessage):
                await receiver.recv(0.01)
            waiting = asyncio.create_task(receiver.recv())
            await settle()
            sender.say("go on")
            assert await waiting == b"anew"
            sender.say("leave")

    run(main())
