"""What a driver offers comes back, whole and once; what it may not do is refused before anything is touched."""

from __future__ import annotations

import array
import contextlib
import gc
import itertools
import os
import pickle
import random
from functools import partial
from pathlib import Path

import pytest
from vqshm_harness import BOTH, PATIENCE, descriptors, echo_spec, wait_until

from vqshm import Device, Driver, spec
from vqshm.errors import (
    CoordinatorGone,
    DeadlineExceeded,
    DeviceNeedsReset,
    InvalidChain,
    InvalidState,
    NegotiationError,
    OutOfBuffers,
    PeerGone,
    QueueFull,
    RuleError,
    VqshmError,
)
from vqshm.notify import Adaptive, Block, Spin, Yield
from vqshm.transport import DeviceSpec, QueueSpec

EVENT_IDX, INDIRECT = spec.mask(spec.VIRTIO_F_EVENT_IDX), spec.mask(spec.VIRTIO_F_INDIRECT_DESC)
FEATURES = pytest.mark.parametrize(
    ("event_idx", "indirect"),
    list(itertools.product([True, False], repeat=2)),
    ids=["both", "event", "indirect", "none"],
)
STRATEGIES = pytest.mark.parametrize("strategy", [Adaptive, Block, Spin, Yield])


@pytest.fixture
def pair(region):
    """A driver and a device of one queue of 64, both in this process: nothing happens unless the test does it."""
    with Device.attach(region.name, config=b"0123456789") as device, Driver.attach(region.name) as driver:
        device.wait_driver(PATIENCE)
        yield driver, device


def answer(device: Device, *answers: bytes) -> None:
    """Let the device return one chain for each answer."""
    for each in answers:
        chain = device.next_chain(PATIENCE)
        device.complete(chain, chain.writer().write(each))


# -- there and back ----------------------------------------------------------------------------------------------------


@BOTH
@FEATURES
def test_bytes_come_back_as_they_were_sent(make_region, notify, event_idx, indirect):
    region = make_region(notify=notify)
    region.echo()
    with Driver.attach(region.name, event_idx=event_idx, indirect=indirect) as driver:
        assert bool(driver.features & EVENT_IDX) is event_idx
        assert bool(driver.features & INDIRECT) is indirect
        for count in (1, 2, 63, 64, 65, 4095, 4096, 4097, 60_000):
            data = random.Random(count).randbytes(count)
            assert driver.request(data, count, timeout=PATIENCE) == data


@BOTH
@STRATEGIES
def test_every_way_of_waiting_gets_there(make_region, notify, strategy):
    region = make_region(notify=notify)
    region.echo()
    with Driver.attach(region.name, strategy=strategy()) as driver:
        for number in range(200):
            word = number.to_bytes(4, "little")
            assert driver.request(word, 4, timeout=PATIENCE) == word


@pytest.mark.parametrize("size", [1 << n for n in range(16)])
def test_every_queue_size_works_round_and_round(make_region, size):
    region = make_region(DeviceSpec("echo0", spec.VQSHM_ID_ECHO, (QueueSpec(size, 1 << 20),)))
    region.echo()
    with Driver.attach(region.name, indirect=size % 3 == 1) as driver:
        if size == 1:
            driver.request([], 4, timeout=PATIENCE)  # one descriptor: nothing to be read, or nowhere to write
            driver.request(b"x", timeout=PATIENCE)
            return
        for number in range(50):
            word = number.to_bytes(4, "little")
            assert driver.request(word, 4, timeout=PATIENCE) == word


@pytest.mark.fault("G08")
@FEATURES
def test_a_request_may_be_scattered(served, event_idx, indirect):
    pieces = [b"a", b"bc", bytearray(b"def"), memoryview(b"ghij"), array.array("H", [0x6C6B, 0x6E6D])]
    with Driver.attach(served.name, event_idx=event_idx, indirect=indirect) as driver:
        assert driver.request(pieces, [1, 2, 3, 100], timeout=PATIENCE) == b"abcdefghijklmn"
        assert driver.request(pieces, [5], timeout=PATIENCE) == b"abcde"


def test_a_request_may_fill_the_whole_queue(served):
    with Driver.attach(served.name, indirect=False) as driver:
        assert driver.request([b"x"] * 32, [1] * 32, timeout=PATIENCE) == b"x" * 32
        assert driver.request([b"x"] * 32, [1] * 32, timeout=PATIENCE) == b"x" * 32


@pytest.mark.fault("G08")
def test_any_number_of_seeded_shapes_is_byte_exact(served):
    rng = random.Random(7)
    with Driver.attach(served.name) as driver:
        for _ in range(300):
            pieces = [rng.randbytes(rng.choice([1, 2, 7, 64, 500])) for _ in range(rng.randint(1, 20))]
            sizes = [rng.choice([1, 3, 64, 700]) for _ in range(rng.randint(1, 20))]
            whole = b"".join(pieces)
            assert driver.request(pieces, sizes, timeout=PATIENCE) == whole[: sum(sizes)]


def test_empty_pieces_and_sizes_are_left_out_of_a_request(served):
    with Driver.attach(served.name) as driver:
        assert driver.request([b"", b"x", b""], [0, 1, 0], timeout=PATIENCE) == b"x"
        assert driver.request(b"x", timeout=PATIENCE) == b""


# -- many in flight ----------------------------------------------------------------------------------------------------


@BOTH
@FEATURES
def test_far_more_requests_than_the_queue_holds_come_back_once_and_in_order(make_region, notify, event_idx, indirect):
    region = make_region(notify=notify)
    region.echo()
    with Driver.attach(region.name, event_idx=event_idx, indirect=indirect) as driver:
        sent = got = 0
        while got < 1000:
            while sent < 1000:
                try:
                    driver.submit([sent.to_bytes(4, "little")], [4], tag=sent)
                except QueueFull:
                    break
                sent += 1
            for request in driver.completed(PATIENCE):
                with request:
                    assert (request.tag, request.output()) == (got, got.to_bytes(4, "little"))
                got += 1
        assert driver.in_flight == 0
        assert driver.ports[0].queue.num_free == 64


@pytest.mark.long
def test_indices_wrap_without_a_loss(served):
    """65536 positions of the rings, and some more."""
    with Driver.attach(served.name) as driver:
        sent = got = 0
        while got < 70_000:
            while sent < 70_000:
                try:
                    driver.submit([sent.to_bytes(4, "little")], [4], tag=sent)
                except QueueFull:
                    break
                sent += 1
            for request in driver.completed(PATIENCE):
                assert (request.tag, request.output()) == (got, got.to_bytes(4, "little"))
                request.release()
                got += 1


def test_request_and_submit_do_not_take_each_other_s_answers(pair, served_by_hand):
    driver, device = pair
    first = driver.submit([b"1"], [8])
    second = driver.submit([b"2"], [8])
    driver.kick()
    answer(device, b"one", b"two")
    served_by_hand(device, b"three")
    assert driver.request(b"3", 8, timeout=PATIENCE) == b"three"
    assert [request.output() for request in driver.completed()] == [b"one", b"two"]
    assert first.done
    assert second.done
    assert list(driver.completed()) == []


@pytest.fixture
def served_by_hand(monkeypatch):
    """Let a device in this process answer while its driver waits: instead of sleeping."""

    def prepare(device, *answers):
        pending = list(answers)
        park = Driver.park

        def serve(self, bells, timeout):
            while pending and device.ready():
                answer(device, pending.pop(0))
            park(self, bells, 0)

        monkeypatch.setattr(Driver, "park", serve)

    return prepare


def test_several_queues_are_reaped_in_turn(make_region):
    region = make_region(echo_spec(queues=3))
    with Device.attach(region.name) as device, Driver.attach(region.name) as driver:
        device.wait_driver(PATIENCE)
        for queue in range(3):
            for _ in range(10):
                driver.submit([b"x"], [1], queue=queue)
        answer(device, *[b"y"] * 30)
        order = []
        while (request := driver.reap()) is not None:
            order.append(request.queue)
        assert order == [0, 1, 2] * 10


@BOTH
def test_every_queue_of_every_device_works(make_region, notify):
    region = make_region(echo_spec("left", 3), echo_spec("right", 2), notify=notify)
    region.echo("left")
    region.echo("right")
    with Driver.attach(region.name, "left") as left, Driver.attach(region.name, "right") as right:
        for driver, queue in [(left, 0), (right, 0), (left, 1), (right, 1), (left, 2)] * 20:
            word = b"%s %d" % (driver.plan.name.encode(), queue)
            assert driver.request(word, 64, queue=queue, timeout=PATIENCE) == word


def test_nothing_in_flight_is_nothing_to_wait_for(pair):
    driver, _ = pair
    assert list(driver.completed()) == []
    assert list(driver.completed(timeout=0)) == []


# -- no room -----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("G01")
def test_a_full_queue_says_so_and_nothing_stays_leased(pair):
    driver, device = pair
    requests = [driver.submit([b"x"]) for _ in range(64)]
    free = driver.ports[0].pool.free
    with pytest.raises(QueueFull, match=r"64 chains are in flight"):
        driver.submit([b"x"])
    assert driver.ports[0].pool.free == free
    driver.kick()
    answer(device, b"")
    next(driver.completed(PATIENCE)).release()
    assert driver.submit([b"x"]) not in requests


def test_no_buffers_left_says_so_and_nothing_stays_leased(pair):
    driver, _ = pair
    pool = driver.ports[0].pool
    held = driver.submit([b"x" * (pool.free // 2)])
    free = pool.free
    with pytest.raises(OutOfBuffers, match="give buffers back"):
        driver.submit([b"x" * 64, b"y" * (free // 2), b"z" * (free // 2)])
    assert pool.free == free
    with pytest.raises(OutOfBuffers, match="larger"):
        driver.submit([], [pool.size + 64])
    assert not held.done
    assert driver.in_flight == 1


@pytest.mark.fault("G01")
def test_a_request_waits_for_room_and_not_for_a_miracle(served):
    with Driver.attach(served.name) as driver:
        pool = driver.ports[0].pool
        with pytest.raises(OutOfBuffers):
            driver.request(b"x" * (pool.size + 1))
        piece = pool.free // 3 // 64 * 64
        for _ in range(10):
            driver.submit([b"x" * 64])
        assert driver.request(b"x" * piece, piece, timeout=PATIENCE) == b"x" * piece


def test_requests_that_gave_up_give_their_buffers_back_when_they_return(pair):
    driver, device = pair
    free = driver.ports[0].pool.free
    for _ in range(5):
        with pytest.raises(DeadlineExceeded):
            driver.request(b"x" * 1000, 1000, timeout=0)
    assert driver.in_flight == 5
    answer(device, *[b"late"] * 5)
    assert list(driver.completed(PATIENCE)) == []  # nobody knows of them any more
    assert (driver.in_flight, driver.ports[0].pool.free) == (0, free)


# -- deadlines ---------------------------------------------------------------------------------------------------------


@pytest.mark.fault("B10")
def test_a_deadline_names_who_is_waited_for(pair):
    driver, _ = pair
    driver.submit([b"x"])
    with pytest.raises(DeadlineExceeded, match=rf"process {os.getpid()}, is alive.* 1 requests in flight"):
        list(driver.completed(timeout=0.01))
    with pytest.raises(TimeoutError) as caught:
        driver.request(b"y", timeout=0.01)
    assert caught.value.facts["in_flight"] == 2


@STRATEGIES
def test_every_way_of_waiting_knows_its_deadline(region, strategy):
    with Device.attach(region.name), Driver.attach(region.name, strategy=strategy()) as driver:
        with pytest.raises(DeadlineExceeded):
            driver.request(b"x", timeout=0.02)
        with pytest.raises(DeadlineExceeded):
            driver.request(b"x", timeout=0)


def test_a_device_that_does_not_come_is_a_deadline(region):
    before = descriptors()
    with pytest.raises(DeadlineExceeded, match="no device process attached"):
        Driver.attach(region.name, timeout=0.3)
    assert descriptors() == before


def test_a_device_that_does_not_let_go_is_a_deadline_that_names_it(pair):
    driver, device = pair
    driver.submit([b"x"], tag="kept")
    with pytest.raises(DeadlineExceeded, match=rf"device \(process {os.getpid()}\) has not let go"):
        driver.reset(timeout=0.05)
    with pytest.raises(InvalidState, match="reset"):
        driver.submit([b"y"])
    with pytest.raises(InvalidState, match="reset"):
        list(driver.completed())
    assert device.next_chain(PATIENCE) is not None  # was published before
    assert device.next_chain(PATIENCE) is None
    assert [request.tag for request in driver.reset(PATIENCE)] == ["kept"]
    device.wait_driver(PATIENCE)
    driver.submit([b"z"], [1])
    driver.kick()
    answer(device, b"!")
    assert [request.output() for request in driver.completed(PATIENCE)] == [b"!"]


@pytest.mark.parametrize("timeout", [-1, float("nan"), -0.001])
def test_a_deadline_in_the_past_is_refused(region, timeout):
    before = descriptors()
    with pytest.raises(ValueError, match="timeout"):
        Driver.attach(region.name, timeout=timeout)
    with Device.attach(region.name), Driver.attach(region.name) as driver:
        with pytest.raises(ValueError, match="timeout"):
            driver.request(b"x", timeout=timeout)
        assert driver.in_flight == 0
    del driver
    assert descriptors() == before


# -- negotiation -------------------------------------------------------------------------------------------------------


def test_features_are_what_both_want(region):
    with Device.attach(region.name, features=0b1110), Driver.attach(region.name, features=0b0111) as driver:
        assert driver.features & 0xFFFF == 0b0110


def test_a_required_feature_that_is_not_offered_ends_in_failed(region):
    with Device.attach(region.name, features=0b10) as device:
        before = descriptors()
        with pytest.raises(NegotiationError, match="cannot do without"):
            Driver.attach(region.name, required=0b1)
        assert descriptors() == before
        with Driver.attach(region.name, features=0, required=0b10) as driver:
            assert driver.features & 0b11 == 0b10
            assert device.wait_driver(PATIENCE) == driver.features


def test_failed_is_what_others_see_while_the_driver_stays(region, monkeypatch):
    with Device.attach(region.name):
        seen = []
        monkeypatch.setattr(Driver, "close", lambda self: seen.append((self.cells.status, self)))
        with pytest.raises(NegotiationError):
            Driver.attach(region.name, required=1)
        monkeypatch.undo()
        status, driver = seen.pop()
        assert status & spec.STATUS_FAILED
        assert not status & spec.STATUS_FEATURES_OK
        driver.close()


@pytest.mark.fault("B14")
def test_after_another_device_came_with_other_features_they_are_negotiated_anew(region):
    device = Device.attach(region.name, features=0b11)
    with Driver.attach(region.name) as driver:
        assert driver.features & 0b11 == 0b11
        device.close()
        with Device.attach(region.name, features=0b01) as successor:
            driver.reset(PATIENCE)
            assert driver.features & 0b11 == 0b01
            assert successor.wait_driver(PATIENCE) == driver.features


# -- configuration -----------------------------------------------------------------------------------------------------


def test_the_driver_reads_the_configuration_that_the_device_wrote(pair):
    driver, device = pair
    assert driver.config.read(0, 10) == b"0123456789"
    assert driver.config.u16(0) == int.from_bytes(b"01", "little")
    before = driver.config.generation
    device.update_config(8, b"ab")
    assert driver.config.read(7, 4) == b"7ab\0"
    assert driver.config.generation != before
    for offset, count in [(-1, 1), (0, 257), (256, 1), (0, -1)]:
        with pytest.raises(RuleError):
            driver.config.read(offset, count)


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("readable", "writable", "error"),
    [
        ([object()], [], TypeError),
        ([b"fine", "text"], [], TypeError),
        ([b"fine", 5], [], TypeError),
        ([b"fine", None], [4], TypeError),
        ([memoryview(b"abcdef")[::2]], [], (TypeError, ValueError, BufferError)),
        ([b""], [4], ValueError),
        ([b"fine", b""], [], ValueError),
        ([b"fine"], [0], ValueError),
        ([b"fine"], [-1], ValueError),
        ([b"fine"], [1.5], TypeError),
        ([b"fine"], ["4"], TypeError),
        ([b"fine"], [None], TypeError),
        ([b"fine"], [1 << 63], OutOfBuffers),
        ([], [], InvalidChain),
        ([b"x"] * 65, [], InvalidChain),
        ([b"x"] * 40, [1] * 40, InvalidChain),
    ],
)
def test_what_is_no_chain_is_refused_before_memory_is_touched(pair, readable, writable, error):
    driver, _ = pair
    pool, port = driver.ports[0].pool, driver.ports[0]
    free, ring = pool.free, port.queue.avail_idx()
    whole = driver.memory.read(port.queue.memory.regions[0].start, 4096)
    with pytest.raises(error):
        driver.submit(readable, writable)
    assert (pool.free, port.queue.avail_idx(), driver.in_flight) == (free, ring, 0)
    assert driver.memory.read(port.queue.memory.regions[0].start, 4096) == whole


@pytest.mark.parametrize("bad", ["text", 5, None, 1.5, object()])
def test_a_request_of_what_is_no_buffer_is_refused(pair, bad):
    driver, _ = pair
    with pytest.raises(TypeError):
        driver.request(bad, 4)
    with pytest.raises(TypeError):
        driver.request([b"x", bad], 4)
    assert driver.in_flight == 0


@pytest.mark.parametrize("queue", [-1, 1, 256])
def test_a_queue_that_does_not_exist_is_refused(pair, queue):
    driver, _ = pair
    for call in (driver.submit, driver.request):
        with pytest.raises(ValueError, match=r"queues 0\.\.0"):
            call([b"x"], queue=queue)
    with pytest.raises(ValueError, match=r"queues 0\.\.0"):
        driver.kick(queue)


# -- requests ----------------------------------------------------------------------------------------------------------


def test_a_request_in_flight_shows_and_releases_nothing(pair):
    driver, _ = pair
    request = driver.submit([b"x"], [4])
    for call in (request.output, request.views, request.release):
        with pytest.raises(InvalidState, match="in flight"):
            call()
    with request:
        pass  # it stays the device's


@pytest.mark.fault("A30")
def test_only_what_the_device_wrote_is_shown(pair):
    driver, device = pair
    with driver.submit([b"secret!!"], [64]) as first:
        driver.kick()
        answer(device, b"*" * 64)
        assert list(driver.completed(PATIENCE)) == [first]
        assert first.output() == b"*" * 64
    first.release()
    second = driver.submit([b"x"], [3, 64, 64])
    driver.kick()
    answer(device, b"abcde")
    assert list(driver.completed(PATIENCE)) == [second]
    assert (second.written, second.output()) == (5, b"abcde")
    assert [bytes(view) for view in second.views()] == [b"abc", b"de", b""]
    assert (second.output(0), second.output(1), second.output(2)) == (b"abc", b"de", b"")


def test_views_of_a_released_request_raise_and_never_show_others_bytes(pair):
    driver, device = pair
    request = driver.submit([b"x"], [64])
    driver.kick()
    answer(device, b"mine")
    assert list(driver.completed(PATIENCE)) == [request]
    views = [*request.views(), request.readable[0].view, request.writable[0].view]
    request.release()
    request.release()
    for view in views:
        with pytest.raises(ValueError, match="released"):
            bytes(view)
    for call in (request.output, request.views):
        with pytest.raises(InvalidState, match="released"):
            call()


def test_buffers_that_something_still_looks_at_are_not_given_back(pair):
    driver, device = pair
    free = driver.ports[0].pool.free
    request = driver.submit([b"x"], [64])
    driver.kick()
    answer(device, b"mine")
    assert list(driver.completed(PATIENCE)) == [request]
    mine = request.views()[0]
    with memoryview(pickle.PickleBuffer(mine)) as array_like:  # as numpy.frombuffer would hold it
        with pytest.raises(InvalidState, match="still exists"):
            request.release()
        assert bytes(array_like) == b"mine"
        assert driver.ports[0].pool.free < free
    del array_like
    request.release()
    assert driver.ports[0].pool.free == free


def test_output_can_be_taken_twice(pair):
    driver, device = pair
    request = driver.submit([b"x"], [64])
    driver.kick()
    answer(device, b"twice")
    next(driver.completed(PATIENCE))
    assert request.output() == request.output() == b"twice"


# -- reset -------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("B10")
def test_a_reset_returns_what_was_lost_and_its_buffers_once(make_region):
    region = make_region(echo_spec(queues=2))
    region.start(lazy)
    with Driver.attach(region.name) as driver:
        pools = [port.pool for port in driver.ports]
        free = [pool.free for pool in pools]
        for tag in range(10):
            driver.submit([bytes([tag]) * 100], [100], queue=tag % 2, tag=tag)
        driver.kick()
        lost = driver.reset(PATIENCE)
        assert sorted(request.tag for request in lost) == list(range(10))
        assert driver.in_flight == 0
        for request in lost:
            assert bytes(request.readable[0].view) == bytes([request.tag]) * 100  # still ours: it can be sent again
            assert (request.done, request.written) == (True, 0)
            request.release()
            request.release()
        assert [port.pool for port in driver.ports] == pools
        assert [pool.free for pool in pools] == free
        assert driver.reset(PATIENCE) == []


def lazy(me, name):
    """A device that takes chains and completes none."""
    with Device.attach(name) as device:
        me.send("up")
        while True:
            try:
                device.wait_driver()
            except InvalidState:
                return
            for _ in device:
                pass


def test_buffers_that_are_held_over_a_reset_are_not_handed_out_again(served):
    with Driver.attach(served.name) as driver:
        request = driver.submit([b"x" * 64], [64])
        list(driver.completed(PATIENCE))
        mine = request.views()[0]
        driver.reset(PATIENCE)
        for _ in range(50):
            driver.request(b"y" * 64, 64, timeout=PATIENCE)
        assert bytes(mine) == b"x" * 64
        request.release()


def test_a_hundred_resets_leak_no_buffers(served):
    with Driver.attach(served.name) as driver:
        free = driver.ports[0].pool.free
        for _ in range(100):
            driver.submit([b"x"])
            for request in driver.reset(PATIENCE):
                request.release()
        assert driver.ports[0].pool.free == free
        assert driver.request(b"x", 1, timeout=PATIENCE) == b"x"


def test_a_request_call_that_was_interrupted_is_not_in_the_list_of_the_lost(pair):
    driver, device = pair
    with pytest.raises(DeadlineExceeded):
        driver.request(b"x", 8, timeout=0)
    kept = driver.submit([b"y"], [8])
    with pytest.raises(DeadlineExceeded):
        driver.reset(timeout=0)
    while device.next_chain(PATIENCE) is not None:
        pass
    assert driver.reset(PATIENCE) == [kept]
    kept.release()
    assert driver.ports[0].pool.free == driver.ports[0].pool.size - 64 * 16 * 16  # but for the indirect tables


# -- the device leaves or says it cannot go on -------------------------------------------------------------------------


def test_a_device_that_closes_without_ending_is_gone(region):
    device = Device.attach(region.name)
    with Driver.attach(region.name) as driver:
        device.wait_driver(PATIENCE)
        driver.submit([b"x"])
        driver.kick()
        device.close()
        with pytest.raises(PeerGone) as caught:
            list(driver.completed(PATIENCE))
        assert caught.value.facts == {"pid": os.getpid(), "role": "device", "in_flight": 1}
        with Device.attach(region.name) as successor:
            assert len(driver.reset(PATIENCE)) == 1
            successor.wait_driver(PATIENCE)
            driver.submit([b"x"], [1])
            driver.kick()
            answer(successor, b"2")
            assert [request.output() for request in driver.completed(PATIENCE)] == [b"2"]


def test_what_a_device_returned_before_it_left_is_still_reaped(region):
    device = Device.attach(region.name)
    with Driver.attach(region.name) as driver:
        device.wait_driver(PATIENCE)
        for _ in range(3):
            driver.submit([b"x"], [8])
        driver.kick()
        answer(device, b"one", b"two")
        device.close()
        assert [request.output() for request in driver.completed(PATIENCE)] == [b"one", b"two"]
        with pytest.raises(PeerGone):
            list(driver.completed(PATIENCE))


def test_a_device_that_stops_serving_by_itself_is_gone_until_a_reset(pair):
    driver, device = pair
    driver.submit([b"x"])
    device.let_go()
    with pytest.raises(PeerGone):
        list(driver.completed(PATIENCE))
    assert len(driver.reset(PATIENCE)) == 1
    device.wait_driver(PATIENCE)


def test_a_device_that_was_replaced_unnoticed_is_gone_all_the_same(region):
    """Its successor has not been started and will never answer what went to the other one."""
    device = Device.attach(region.name)
    with Driver.attach(region.name) as driver:
        driver.submit([b"x"])
        device.close()
        with Device.attach(region.name):
            with pytest.raises(PeerGone):
                list(driver.completed(PATIENCE))
            with pytest.raises(PeerGone):
                driver.request(b"y", timeout=PATIENCE)
            driver.reset(PATIENCE)
            with pytest.raises(DeadlineExceeded):
                driver.request(b"y", timeout=0)


@pytest.mark.fault("B12")
def test_a_device_that_needs_a_reset_is_not_waited_for(pair):
    driver, device = pair
    driver.submit([b"x"])
    device.needs_reset("the disk is on fire")
    with pytest.raises(DeviceNeedsReset, match="on fire") as caught:
        list(driver.completed(PATIENCE))
    assert caught.value.facts["in_flight"] == 1
    for call in (lambda: driver.submit([b"y"]), lambda: driver.request(b"y"), lambda: driver.kick(0)):
        with pytest.raises(DeviceNeedsReset):
            call()
    driver.kick()  # all that can be kicked: none


@pytest.mark.fault("B12")
@pytest.mark.parametrize("reason", ["x" * 5000, "\udcff\ud800", "", "é" * 500])
def test_any_reason_reaches_the_driver(pair, reason):
    driver, device = pair
    driver.submit([b"x"])
    device.needs_reset(reason)
    with pytest.raises(DeviceNeedsReset):
        list(driver.completed(PATIENCE))


def test_a_region_that_was_closed_is_not_waited_for_for_ever(make_region, monkeypatch):
    monkeypatch.setattr("vqshm.host.driver_role.CONTROL_TIMEOUT", 0.05)
    region = make_region()
    with Device.attach(region.name) as device, Driver.attach(region.name) as driver:
        device.wait_driver(PATIENCE)
        for _ in range(2):
            driver.submit([b"x"], [8])
        driver.kick()
        region.coordinator.finish()
        answer(device, b"one", b"two")
        assert device.next_chain(PATIENCE) is None
        assert [request.output() for request in driver.completed(PATIENCE)] == [b"one", b"two"]
        driver.submit([b"x"])
        with pytest.raises(CoordinatorGone, match="was closed"):
            list(driver.completed(PATIENCE))


# -- the end -----------------------------------------------------------------------------------------------------------


@BOTH
def test_closing_twice_is_closing_once(make_region, notify):
    region = make_region(notify=notify)
    region.echo()
    before = descriptors()
    driver = Driver.attach(region.name)
    driver.close()
    driver.close()
    for call in (driver.reap, driver.reset, driver.kick, driver.submit, partial(driver.request, b"x")):
        with pytest.raises(InvalidState, match="closed"):
            call()
    with pytest.raises(InvalidState, match="closed"):
        list(driver.completed())
    del driver, call
    assert descriptors() == before


def test_closing_with_views_out_raises_nothing_and_they_stay_readable(pair):
    driver, device = pair
    request = driver.submit([b"x"], [64])
    driver.kick()
    answer(device, b"mine")
    next(driver.completed(PATIENCE))
    view = request.views()[0]
    driver.close()
    device.close()
    assert bytes(view) == b"mine"


def test_closing_with_requests_in_flight_raises_nothing(served):
    driver = Driver.attach(served.name)
    requests = [driver.submit([b"x"], [4]) for _ in range(30)]
    driver.close()
    for request in requests:
        with request:
            pass
    with Driver.attach(served.name) as driver:
        assert driver.request(b"x", 1, timeout=PATIENCE) == b"x"


def test_a_driver_does_not_pickle_and_its_handle_does(pair):
    driver, _ = pair
    with pytest.raises(TypeError, match="handle"):
        pickle.dumps(driver)
    handle = pickle.loads(pickle.dumps(driver.handle))
    assert (handle.region, handle.device) == (driver.region, "echo0")


def test_the_counters_tell_what_happened(served):
    with Driver.attach(served.name) as driver:
        for _ in range(200):
            driver.request(b"12345", 64, timeout=PATIENCE)
        cells = driver.manifest.queue(0)
        driver.close()
        seen = cells.driver.snapshot()
        assert (seen["added"], seen["reaped"], seen["bytes_out"], seen["bytes_in"]) == (200, 200, 1000, 1000)
        wait_until(lambda: cells.device.snapshot()["used"] == 200, "the device shows its counters")
        seen = cells.device.snapshot()
        assert (seen["taken"], seen["bytes_in"], seen["bytes_out"]) == (200, 1000, 1000)


# -- Ctrl-C at the worst moment ----------------------------------------------------------------------------------------


def test_an_interruption_after_a_chain_was_offered_does_not_hand_its_buffers_out_again(pair, interrupted_after):
    driver, device = pair
    port = driver.ports[0]
    free = port.pool.free
    with interrupted_after(port, "add"), pytest.raises(KeyboardInterrupt):
        driver.submit([b"A" * 64], [64])
    assert port.pool.free == free - 128  # the device may write there
    other = driver.submit([b"B" * 64], [64])
    driver.kick()
    answer(device, b"a" * 64, b"b" * 64)
    done = list(driver.completed(PATIENCE))
    assert [request.output() for request in done] == [b"a" * 64, b"b" * 64]
    assert done[1] is other
    for request in done:
        request.release()
    assert (driver.in_flight, port.pool.free) == (0, free)


def test_an_interruption_before_a_chain_was_offered_leaves_nothing(pair, monkeypatch):
    driver, _ = pair
    port = driver.ports[0]
    free = port.pool.free

    def interrupt(_request):
        raise KeyboardInterrupt

    monkeypatch.setattr(port, "_offer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        driver.submit([b"A" * 64], [64])
    assert port.pool.free == free


@pytest.fixture
def interrupted_after():
    """A queue whose method does its work, and then comes Ctrl-C."""

    class Interrupting:
        def __init__(self, port, method):
            self.__dict__.update(port=port, queue=port.queue, method=method)

        def __getattr__(self, name):
            attribute = getattr(self.queue, name)
            if name != self.method:
                return attribute

            def call(*args):
                attribute(*args)
                raise KeyboardInterrupt

            return call

        def __enter__(self):
            self.port.queue = self

        def __exit__(self, *_):
            self.port.queue = self.queue

    return Interrupting


def test_a_broken_queue_lets_go_of_its_memory_without_a_garbage_collection(served):
    def mapped() -> int:
        return sum(f"vqshm.{served.name}" in line for line in Path("/proc/self/maps").read_text().splitlines())

    gc.collect()
    gc.disable()
    try:
        driver = Driver.attach(served.name)
        assert mapped() == 1
        driver.memory.write(driver.plan.queues[0].layout.used_ring + 2, b"\7\0")
        with contextlib.suppress(VqshmError):
            driver.request(b"x", 8, timeout=PATIENCE)
        assert driver.ports[0].queue.broken is not None
        driver.close()
        del driver
        assert mapped() == 0
    finally:
        gc.enable()
