"""Two threads, one half each, over one queue: nothing is lost, torn or seen too early.

Nothing but the queue orders what the two do: whoever has nothing to do, gives its turn away and looks again. So
ThreadSanitizer (`tools/sanitize.py thread`) sees every access to shared memory for which the rings give no order.
"""

from __future__ import annotations

import threading
import time

import pytest

from vqshm.memory import GuestMemory
from vqshm.ring import QueueConfig, SplitLayout

BASE = 0x1_0000
SIZE = 8
ROOM = 64  # bytes of a buffer
ROUNDS = 1500


def halves(event_idx, indirect):
    """Both halves, each with a memory of its own over the same bytes, and the address of the buffers."""
    layout = SplitLayout.at(BASE, SIZE)
    buffers = layout.end + SIZE * 4 * 16
    shared = bytearray(buffers + SIZE * 3 * ROOM - BASE)
    ours, theirs = GuestMemory([(BASE, shared)]), GuestMemory([(BASE, shared)])
    config = QueueConfig(layout, event_idx=event_idx, indirect=indirect)
    driver = config.driver(ours, indirect_tables=(layout.end, 4) if indirect else None)
    return driver, ours, config.device(theirs), theirs, buffers


def asked(number):
    return number.to_bytes(4, "little") * (1 + number % (ROOM // 4))


class Device(threading.Thread):
    """Answers each chain with its bytes turned round, and now and then prepares to sleep, as one that blocks does."""

    def __init__(self, queue, memory):
        super().__init__(daemon=True)
        self.queue = queue
        self.memory = memory
        self.calls = 0
        self.error = None

    def run(self):
        try:
            for number in range(ROUNDS):
                while (chain := self.queue.pop()) is None:
                    if not self.queue.enable_notification():
                        time.sleep(0)
                    self.queue.disable_notification()
                data = chain.reader().read(ROOM * 2)
                chain.writer().write_all(data[::-1])
                self.queue.add_used(chain.head_index, len(data))
                if number % 3 == 0:
                    self.calls += self.queue.needs_notification()
        except BaseException as error:  # noqa: BLE001 - the other thread raises it
            self.error = error


@pytest.mark.fault("H06")
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "EVENT_IDX"])
def test_two_threads_exchange_buffers_over_one_queue(event_idx, indirect):
    driver, memory, queue, theirs, buffers = halves(event_idx, indirect)
    device = Device(queue, theirs)
    free = [buffers + 3 * ROOM * place for place in range(SIZE)]
    flying = {}
    sent = done = kicks = 0
    device.start()
    while done < ROUNDS:
        while sent < ROUNDS and free and driver.num_free >= 3:
            place, data = free.pop(), asked(sent)
            memory.write(place, data)
            half = len(data) // 2
            pieces = [(place, half), (place + half, len(data) - half)] if half else [(place, len(data))]
            flying[driver.add(pieces, [(place + 2 * ROOM, len(data))])] = place, data
            sent += 1
            kicks += driver.needs_kick()
        found = driver.reap()
        if found is None:
            if device.error is not None:
                raise device.error
            if not driver.enable_notification(1):
                time.sleep(0)
            driver.disable_notification()
            continue
        place, data = flying.pop(found[0])
        assert found[1] == len(data)
        assert memory.read(place + 2 * ROOM, len(data)) == data[::-1]
        free.append(place)
        done += 1
    device.join()
    assert device.error is None
    assert not flying
    assert 0 < kicks <= ROUNDS
    assert device.calls <= ROUNDS
