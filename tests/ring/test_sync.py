"""QueueSync: the same queue, one caller at a time; nothing that takes two steps can be torn apart."""

from __future__ import annotations

import copy
import sys
import threading
import time

import pytest

from vqshm import errors
from vqshm.ring import Queue, QueueState
from vqshm.ring.sync import QueueSync


def configured(r, **options):
    queue = QueueSync(r.size, **options)
    queue.try_set_desc_table_address(r.layout.desc_table)
    queue.try_set_avail_ring_address(r.layout.avail_ring)
    queue.try_set_used_ring_address(r.layout.used_ring)
    queue.set_ready(True)
    return queue


@pytest.fixture
def eager_threads():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(count, work):
    """Run `work(number)` in so many threads; their results. An error in one of them is raised here."""
    results, failures = [None] * count, []
    barrier = threading.Barrier(count)

    def run(number):
        try:
            barrier.wait()
            results[number] = work(number)
        except BaseException as error:  # noqa: BLE001 - carried into the thread of the test
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "seed"])
def test_each_chain_is_taken_by_one_thread_and_returned_once(rig, eager_threads, strict):
    r = rig(256)
    queue = configured(r, strict=strict)
    for _ in range(256):
        r.driver.add([(r.buffers, 4)])

    def work(_):
        mine = []
        while (chain := queue.pop_descriptor_chain(r.memory)) is not None:
            mine.append(chain.head_index)
            queue.add_used(r.memory, chain.head_index, 0)
        return mine

    heads = [head for mine in together(4, work) for head in mine]
    assert sorted(heads) == list(range(256))
    assert (queue.next_avail, queue.next_used, r.used) == (256, 256, 256)
    assert sorted(token for token, _ in iter(r.driver.reap, None)) == list(range(256))


def test_a_lock_is_held_over_several_calls(rig, eager_threads):
    r = rig(64)
    queue = configured(r)
    for _ in range(64):
        r.driver.add([(r.buffers, 4)])

    def work(_):
        pairs = []
        while True:
            with queue.lock() as inner:
                chains = [inner.pop_descriptor_chain(r.memory) for _ in range(2)]
            if chains[0] is None:
                return pairs
            pairs.append([chain.head_index for chain in chains])

    for pairs in together(4, work):
        assert all(second == first + 1 for first, second in pairs)


def test_whoever_holds_the_lock_shuts_the_others_out(rig):
    r = rig()
    queue = configured(r)
    order = []
    with queue.lock() as inner:
        assert isinstance(inner, Queue)
        other = threading.Thread(target=lambda: order.append(("other", queue.size)))
        other.start()
        time.sleep(0.05)
        order.append(("holder", inner.size))
    other.join()
    assert order == [("holder", 8), ("other", 8)]


def test_the_holder_of_the_lock_may_call_the_queue_again(rig):
    queue = configured(rig())
    with queue.lock():
        assert queue.size == 8
        assert queue.set_size(4)
    assert queue.size == 4


def test_the_lock_is_given_back_after_an_error(rig):
    r = rig()
    queue = configured(r)
    with pytest.raises(errors.InvalidDescriptorIndex):
        queue.add_used(r.memory, 99, 0)
    with pytest.raises(KeyError), queue.lock():
        raise KeyError
    assert together(1, lambda _: queue.size) == [8]


def test_an_iteration_is_offered_inside_of_the_lock_only(rig):
    r = rig()
    queue = configured(r)
    r.driver.add([(r.buffers, 4)])
    with pytest.raises(TypeError, match="inside the lock"):
        queue.iter(r.memory)
    with queue.lock() as inner:
        assert [chain.head_index for chain in inner.iter(r.memory)] == [0]


def test_a_state_is_restored_into_a_locked_queue():
    state = QueueState(64, 5, 6, True, 32, True, 0x1000, 0x2000, 0x3000)
    queue = QueueSync.from_state(state, name="net")
    assert queue.state() == state
    assert queue.name == "net"
    with pytest.raises(errors.InvalidMaxSize):
        QueueSync.from_state(QueueState(3, 0, 0, False, 1, False, 0, 0, 0))


def test_what_a_queue_does_not_have_its_locked_form_has_not_either():
    queue = QueueSync(8)
    for name in ("no_such_thing", "_half", "__deepcopy__"):
        with pytest.raises(AttributeError):
            getattr(queue, name)
    with pytest.raises(errors.InvalidMaxSize):
        QueueSync(3)


def test_a_copy_does_not_recurse():
    twin = copy.copy(QueueSync(8))
    assert twin.size == 8
    with pytest.raises(TypeError):
        copy.deepcopy(twin)
