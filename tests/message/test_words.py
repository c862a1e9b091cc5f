"""The words of queue.Queue mean what they mean there; and no object that is refused leaves anything behind."""

from __future__ import annotations

import gc
import operator
import queue
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vqshm_harness import BOTH, PATIENCE, wait_until

from vqshm import Receiver, Sender
from vqshm.errors import (
    EndOfMessages,
    InvalidState,
    MessageTooLarge,
    NoMessage,
    NoRoom,
    ProtocolError,
    QueueEmpty,
    QueueFull,
)
from vqshm.message.payload import frame

SIZE = 4  # so small that the receiver gives back each message at once: one get makes room for one put
WRONG = (b"", b"\xc1", b"\xc1\x09" + bytes(62), b"\xdd\xff\xff\xff\xff", frame.header(frame.BYTES, 8) + bytes(7))


def nothing_is_out(sender: Sender, receiver: Receiver) -> bool:
    """Every message was received and given back, every byte and descriptor is free."""
    with pytest.raises(queue.Empty):
        receiver.get_nowait()  # who finds nothing gives back what he has
    outlet = sender._outlet
    return (
        sender.qsize() == receiver.qsize() == receiver._inlet.lent == outlet.reserved == outlet.arena.out == 0
        and outlet.num_free == outlet.size
        and outlet.arena.free == outlet.arena.size
    )


def blocked(end: Sender | Receiver, word, *args, unblock):
    """What a word returns that blocks in a thread of its own, until `unblock` is called."""
    results = []
    before = end.counts["waits"]
    thread = threading.Thread(target=lambda: results.append(word(*args)))
    thread.start()
    try:
        wait_until(lambda: end.counts["waits"] > before, "it sleeps")
        assert not results
    finally:
        unblock()
        thread.join(PATIENCE)
    assert not thread.is_alive()
    (result,) = results
    return result


# -- as CPython tests its own queues -----------------------------------------------------------------------------------


@BOTH
def test_objects_come_in_order_and_fullness_and_emptiness_are_as_in_a_queue(pair, notify):
    sender, receiver = pair(size=SIZE, notify=notify)
    for _ in range(2):  # the same queue can be used again
        assert not sender.qsize()
        assert not receiver.qsize()
        assert sender.empty()
        assert receiver.empty()
        assert not sender.full()
        for number in (111, 333, 222):
            sender.put(number)
        assert [receiver.get(), receiver.get(), receiver.get()] == [111, 333, 222]
        for number in range(SIZE - 1):
            sender.put(number)
            assert receiver.qsize() == number + 1
        assert not sender.full()
        sender.put("last")
        assert sender.full()
        assert not sender.empty()
        assert not receiver.empty()
        assert sender.qsize() == receiver.qsize() == SIZE
        with pytest.raises(queue.Full):
            sender.put("full", block=False)
        with pytest.raises(queue.Full):
            sender.put("full", timeout=0.01)
        assert blocked(sender, sender.put, "full", unblock=receiver.get) is None
        assert blocked(sender, sender.put, "full", True, PATIENCE, unblock=receiver.get) is None
        assert [receiver.get() for _ in range(SIZE)] == [2, "last", "full", "full"]
        assert not receiver.qsize()
        with pytest.raises(queue.Empty):
            receiver.get(block=False)
        with pytest.raises(queue.Empty):
            receiver.get(timeout=0.01)
        assert blocked(receiver, receiver.get, unblock=lambda: sender.put("empty")) == "empty"
        assert blocked(receiver, receiver.get, True, PATIENCE, unblock=lambda: sender.put("empty")) == "empty"
    assert nothing_is_out(sender, receiver)


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
def test_a_negative_timeout_is_refused_however_things_stand(pair, timeout):
    sender, receiver = pair(size=SIZE)
    for _ in range(SIZE):
        with pytest.raises(ValueError, match="timeout"):
            sender.put(1, timeout=timeout)
        with pytest.raises(ValueError, match="timeout"):
            sender.put_many([1], timeout=timeout)
        sender.put(1)
    for word in (receiver.get, receiver.get_view):
        with pytest.raises(ValueError, match="timeout"):
            word(timeout=timeout)
    with pytest.raises(ValueError, match="timeout"):
        receiver.get_many(3, timeout=timeout)
    assert receiver.get_many(9) == [1] * SIZE
    with pytest.raises(ValueError, match="timeout"):
        receiver.get(True, timeout)
    assert nothing_is_out(sender, receiver)


def test_whoever_does_not_block_has_no_timeout(pair):
    sender, receiver = pair(size=SIZE)
    for number in range(SIZE):
        sender.put(number, False, -1)
    with pytest.raises(queue.Full):
        sender.put(4, False, -1)
    with pytest.raises(queue.Full):
        sender.put(4, False, PATIENCE)
    assert [receiver.get(False, -1) for _ in range(SIZE)] == [0, 1, 2, 3]
    with pytest.raises(queue.Empty):
        receiver.get(False, -1)
    with pytest.raises(queue.Empty):
        receiver.get(False, PATIENCE)
    with pytest.raises(queue.Empty):
        receiver.get_many(3, False, -1)
    with pytest.raises(queue.Empty):
        receiver.get_view(False, -1)


def test_nowait(pair):
    sender, receiver = pair(size=SIZE)
    for _ in range(SIZE):
        sender.put_nowait(1)
    with pytest.raises(queue.Full) as full:
        sender.put_nowait(1)
    for _ in range(SIZE):
        receiver.get_nowait()
    with pytest.raises(queue.Empty) as empty:
        receiver.get_nowait()
    assert all(isinstance(full.value, kind) for kind in (NoRoom, QueueFull, TimeoutError))
    assert all(isinstance(empty.value, kind) for kind in (NoMessage, QueueEmpty, TimeoutError))


def test_many_threads_feed_and_consume_and_nothing_is_lost_or_doubled(pair):
    sender, receiver = pair(size=SIZE)
    feeders, total, got, lock = 3, 300, [], threading.Lock()

    def feed(first):
        for number in range(first, total, feeders):
            sender.put(number, timeout=PATIENCE)

    def consume():
        while (obj := receiver.get(timeout=PATIENCE)) is not None:
            with lock:
                got.append(obj)

    consumers = [threading.Thread(target=consume) for _ in range(2)]
    threads = [threading.Thread(target=feed, args=(first,)) for first in range(feeders)]
    for thread in (*consumers, *threads):
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for _ in consumers:
        sender.put(None, timeout=PATIENCE)
    for thread in consumers:
        thread.join(PATIENCE)
    assert sorted(got) == list(range(total))
    assert nothing_is_out(sender, receiver)


def test_a_thread_that_waits_keeps_others_waiting_no_longer_than_they_want(pair):
    sender, receiver = pair(size=SIZE)

    def others():
        for words in ((receiver.get_nowait,), (receiver.get, True, 0.01), (receiver.get_view, True, 0.01)):
            with pytest.raises(queue.Empty):
                words[0](*words[1:])
        with pytest.raises(ValueError, match="timeout"):
            receiver.get(timeout=-1)
        sender.put("for the first")

    assert blocked(receiver, receiver.get, unblock=others) == "for the first"
    sender.put_many(range(SIZE))

    def more():
        with pytest.raises(queue.Full):
            sender.put_nowait("too much")
        with pytest.raises(queue.Full):
            sender.put_many(["too much"], timeout=0.01)
        receiver.get()

    assert blocked(sender, sender.put, "last", unblock=more) is None
    assert receiver.get_many(9) == [1, 2, 3, "last"]
    assert nothing_is_out(sender, receiver)


def test_what_was_got_is_referred_to_by_nobody_else(pair):
    sender, receiver = pair()
    obj = {"list": [1, 2]}
    sender.put(obj)
    obj["list"].append(3)  # too late: what was put is what it was
    assert receiver.get() == {"list": [1, 2]}


# -- what a queue between processes has besides ------------------------------------------------------------------------


def test_a_program_for_queues_runs_in_two_processes(make_channel, start):
    there, back = (make_channel(size=1024, buffers=1 << 20).name for _ in range(2))
    worker = start(square, there, back)
    with Receiver.attach(back) as results, Sender.attach(there) as jobs:
        for number in range(500):
            jobs.put({"job": number, "data": bytes(number)})
        jobs.put(None)
        assert [results.get(timeout=PATIENCE) for _ in range(500)] == [[n, n * n, bytes(n)] for n in range(500)]
        with pytest.raises(EndOfMessages) as end:
            results.get(timeout=PATIENCE)
        assert isinstance(end.value, EOFError)
        assert worker.end() == 0


def square(_me, jobs, results):
    """A worker as one would write it for multiprocessing.Queue."""
    with Receiver.attach(jobs) as inbox, Sender.attach(results, timeout=PATIENCE) as outbox:
        for job in iter(inbox.get, None):
            outbox.put((job["job"], job["job"] ** 2, job["data"]))


def test_after_the_sender_has_left_what_it_put_is_got_and_then_the_end(pair):
    sender, receiver = pair()
    sender.put_many(["a", b"b"])
    sender.close()
    with pytest.raises(InvalidState):
        sender.put("c")
    assert receiver.get() == "a"
    assert receiver.get_nowait() == b"b"
    with pytest.raises(EndOfMessages):
        receiver.get()
    with pytest.raises(queue.Empty):
        receiver.get_nowait()  # it is the next sender now that is waited for


def test_many_are_put_and_got_at_once(pair):
    sender, receiver = pair(size=8)
    objects = [1, b"two", {"three": 3}, [4]]
    sender.put_many(iter(objects))
    assert receiver.get_many(3) == objects[:3]
    assert receiver.get_many(3) == objects[3:]
    sender.put_many([])
    with pytest.raises(ValueError, match="at least 1"):
        receiver.get_many(0)
    assert blocked(receiver, receiver.get_many, 9, unblock=lambda: sender.put("late")) == ["late"]
    assert nothing_is_out(sender, receiver)
    with pytest.raises(NoRoom) as full:
        sender.put_many(range(20), block=False)
    assert full.value.facts["sent"] == 8
    assert receiver.get_many(20) == list(range(8))
    with pytest.raises(TypeError):
        sender.put_many([1, 2, object()])
    assert nothing_is_out(sender, receiver)  # not even the first was sent


def test_whatever_is_put_is_got(pair):
    sender, receiver = pair()

    @given(st.lists(st.recursive(st.none() | st.integers(0, 9) | st.text() | st.binary(), st.lists), max_size=9))
    @settings(max_examples=30)
    def check(objects):
        sender.put_many(objects)
        assert [receiver.get() if number % 2 else receiver.lend(owned) for number in range(len(objects))] == objects
        assert nothing_is_out(sender, receiver)

    check()


def owned(obj):
    return obj.tobytes() if isinstance(obj, memoryview) else obj


@pytest.mark.parametrize(
    "obj", [object(), {1}, 1 << 64, "\ud800", [[1j]], memoryview(b"abcd")[::2]], ids=lambda obj: type(obj).__name__
)
def test_what_is_refused_leaves_nothing_behind(pair, obj):
    sender, receiver = pair()
    for put in (sender.put, sender.put_nowait, lambda obj: sender.put_many([1, b"2", obj])):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            put(obj)
    assert sender.counts["messages"] == 0
    assert nothing_is_out(sender, receiver)


def test_what_is_larger_than_the_lane_is_refused_with_the_numbers(pair):
    numpy = pytest.importorskip("numpy")
    sender, receiver = pair(buffers=8192)
    for obj in (bytes(8192), "x" * 8192, numpy.zeros(1024), numpy.zeros((2, 1024))[:, ::2]):
        with pytest.raises(MessageTooLarge) as error:
            sender.put(obj)
        assert error.value.facts["limit"] == 8192
    assert nothing_is_out(sender, receiver)
    sender.put(bytes(8192 - 64))  # a frame takes 64 bytes
    assert receiver.get() == bytes(8192 - 64)


def test_a_put_that_fails_while_it_writes_sends_nothing_and_keeps_nothing(pair, monkeypatch):
    numpy = pytest.importorskip("numpy")
    sender, receiver = pair()
    monkeypatch.setattr(numpy, "copyto", operator.getitem)  # fails, and leaves no frame of its own in the traceback
    with pytest.raises(IndexError) as error:
        sender.put(numpy.eye(3)[::2])
    assert nothing_is_out(sender, receiver)  # although the traceback still exists
    assert error.traceback


def test_a_table_that_is_refused_in_place_goes_back_at_once(pair):
    pytest.importorskip("pyarrow")
    sender, receiver = pair()
    sender.send(frame.header(frame.TABLE, 64) + bytes(range(64)))
    with pytest.raises(ProtocolError, match="table") as error:
        receiver.get_view()
    assert nothing_is_out(sender, receiver)  # although the traceback still exists
    assert error.traceback


@pytest.mark.parametrize("before", ["text", b"bytes"], ids=["read as bytes", "looked at in place"])
@pytest.mark.parametrize("message", WRONG, ids=lambda message: repr(message[:5]))
def test_behind_a_message_that_is_no_object_comes_the_next(pair, message, before):
    sender, receiver = pair(size=SIZE)
    for word in (receiver.get, receiver.get_nowait, receiver.get_view, lambda: receiver.lend(owned)):
        for obj in (before, "x", b"y"):  # `get` goes on as the message before was
            sender.put(before)
            assert receiver.get() == before
            sender.send(message)
            sender.put(obj)
            with pytest.raises(ProtocolError):
                word()
            assert receiver.get() == obj
    assert nothing_is_out(sender, receiver)


def test_messages_that_are_no_objects_do_not_take_others_with_them(pair):
    sender, receiver = pair()
    for message in (b"\xa1a", WRONG[0], b"\xa1b", WRONG[3], b"\xa1c"):
        sender.send(message)
    with pytest.raises(ProtocolError) as error:
        receiver.get_many(9)
    assert error.value.facts["objects"] == ["a", "b", "c"]
    assert nothing_is_out(sender, receiver)


# -- in place ----------------------------------------------------------------------------------------------------------


def test_bytes_are_looked_at_in_place_until_the_block_is_left(pair):
    sender, receiver = pair()
    sender.put(b"abc")
    with receiver.get_view() as view:
        assert view == b"abc"
        assert view.readonly
        assert receiver._inlet.lent == 1
    with pytest.raises(ValueError, match="released"):
        view[0]
    sender.put(b"abc")
    with pytest.raises(InvalidState, match="`del` it"), receiver.get_view() as view:
        part = memoryview(view)[1:]
    assert part == b"bc"
    del part, view
    gc.collect()
    assert nothing_is_out(sender, receiver)


def test_plain_objects_in_place_are_ones_own(pair):
    sender, receiver = pair()
    sender.put({"a": [1]})
    with receiver.get_view() as obj:
        pass
    assert obj == {"a": [1]}
    assert nothing_is_out(sender, receiver)


def test_an_array_is_looked_at_in_place_and_given_back(pair):
    numpy = pytest.importorskip("numpy")
    sender, receiver = pair()
    items = numpy.arange(1000.0).reshape(10, 100)
    for sent in (items, items.T, items[::2]):
        sender.put(sent)
        with receiver.get_view() as array:
            assert numpy.array_equal(array, sent)
            assert array.flags.aligned
            assert not array.flags.writeable
            assert not array.flags.owndata
            del array
        sender.put(sent)
        assert receiver.lend(numpy.sum) == sent.sum()
    assert nothing_is_out(sender, receiver)


@pytest.mark.parametrize("keep", [lambda a: a, lambda a: a[1:], memoryview, lambda a: a.T[0]])
def test_an_array_that_survives_its_block_is_an_error_and_never_stale(pair, keep):
    numpy = pytest.importorskip("numpy")
    sender, receiver = pair(size=SIZE)
    sender.put(numpy.arange(8).reshape(2, 4))
    loan = receiver.get_view()
    with pytest.raises(InvalidState, match="`del` it"), loan as array:
        kept = keep(array)
    before = numpy.array(kept)
    for number in range(3):  # its memory is nobody else's before it is gone
        sender.put(number)
        assert receiver.get() == number
    assert numpy.array_equal(kept, before)
    del array
    with pytest.raises(InvalidState, match="`del` it"):
        loan.release()
    del kept
    loan.release()
    loan.release()
    with pytest.raises(InvalidState, match="given back"):
        loan.__enter__()
    assert nothing_is_out(sender, receiver)


def test_a_message_whose_array_survived_goes_back_when_it_is_gone(pair):
    numpy = pytest.importorskip("numpy")
    sender, receiver = pair()
    sender.put(numpy.arange(8))
    with pytest.raises(InvalidState):
        receiver.lend(lambda array: array)
    gc.collect()
    assert nothing_is_out(sender, receiver)


def test_an_error_in_the_block_is_what_is_raised(pair):
    numpy = pytest.importorskip("numpy")
    sender, receiver = pair()
    sender.put(numpy.arange(8))
    with pytest.raises(ZeroDivisionError), receiver.get_view() as array:
        _ = len(array) // 0
    del array
    sender.put(b"x")
    with pytest.raises(ZeroDivisionError):
        receiver.lend(lambda _: 1 // 0)
    gc.collect()
    assert nothing_is_out(sender, receiver)


def test_what_is_got_can_be_changed_and_outlives_its_message(pair):
    numpy = pytest.importorskip("numpy")
    sender, receiver = pair(size=SIZE)
    got = []
    for number in range(3 * SIZE):
        sender.put(numpy.full((3, 5), number)[:, ::2])
        got.append(receiver.get())
        got[-1][0, 0] = -1
    assert [array[1].tolist() for array in got] == [[number] * 3 for number in range(3 * SIZE)]
    assert all(array[0, 0] == -1 for array in got)
    assert nothing_is_out(sender, receiver)


def test_a_table_is_written_and_read_in_place(pair):
    arrow = pytest.importorskip("pyarrow")
    sender, receiver = pair(size=SIZE)
    table = arrow.table({"a": [1, 2, 3], "b": ["x", None, "yy"]})
    for obj in (table, table.to_batches()[0]):
        sender.put(obj)
        got = receiver.get()
        sender.put(obj)
        assert receiver.lend(obj.equals)
        assert got.equals(obj)
        sender.put(obj)
        with pytest.raises(InvalidState, match="`del` it"), receiver.get_view() as borrowed:
            column = borrowed.column(0)
        assert column.to_pylist() == [1, 2, 3]
        del borrowed, column
        gc.collect()
    assert nothing_is_out(sender, receiver)


def test_arrays_go_between_processes(make_channel, start):
    numpy = pytest.importorskip("numpy")
    region = make_channel("lane")
    actor = start(send_arrays, region.name)
    with Receiver.attach(region.name) as receiver:
        for number in range(50):
            array = receiver.get(timeout=PATIENCE)
            assert (array.shape, array.dtype) == ((number, 3), numpy.dtype("f4"))
            assert (array == number).all()
        with pytest.raises(EndOfMessages):
            receiver.get(timeout=PATIENCE)
    assert actor.end() == 0


def send_arrays(_me, region):
    import numpy as np

    with Sender.attach(region, timeout=PATIENCE) as sender:
        for number in range(50):
            sender.put(np.full((3, number), number, "f4").T)
