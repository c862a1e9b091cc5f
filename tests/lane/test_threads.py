"""Two threads, one end of a lane each: every message arrives once, whole and in its order, however it travels.

Nothing but the rings orders what the two do; see tests/ring/test_threads.py.
"""

from __future__ import annotations

import threading
import time

import pytest

MESSAGES = 2000


class Patient:
    """A keeper that gives its turn away instead of sleeping, and raises what the other thread ended with."""

    def __init__(self):
        self.failure = None

    def sleep(self, _deadline, after=0):
        if self.failure is not None:
            raise self.failure
        time.sleep(0)
        return True

    def lie_down(self, _deadline):
        return False

    def get_ready(self, _deadline=None):
        raise AssertionError("an end got out of order")

    def broke(self, error):
        raise error

    def show_counts(self):
        pass

    def stalled(self):
        return "the double was asked"


def message(number):
    return number.to_bytes(4, "little") * (1 + number % 40)


def in_two_threads(r, sender, receiver):
    """Run both, in the end this thread's `receiver`; raises what either of them raises."""
    r.outlet.keeper, r.inlet.keeper = Patient(), Patient()

    def run():
        try:
            sender(r.outlet)
        except BaseException as error:  # noqa: BLE001 - the other thread raises it
            r.inlet.keeper.failure = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        receiver(r.inlet)
    except BaseException as error:
        r.outlet.keeper.failure = error
        raise
    finally:
        thread.join()
    if r.inlet.keeper.failure is not None:
        raise r.inlet.keeper.failure


def send(outlet):
    for number in range(MESSAGES):
        outlet.send(message(number))


def send_many(outlet):
    for first in range(0, MESSAGES, 10):
        outlet.send_many([message(number) for number in range(first, first + 10)])


def reserve(outlet):
    for number in range(MESSAGES):
        data = message(number)
        reservation = outlet.reserve(200)
        reservation.view[: len(data)] = data
        reservation.commit(len(data))


def recv(inlet):
    for number in range(MESSAGES):
        assert inlet.recv() == message(number)


def recv_many(inlet):
    number = 0
    while number < MESSAGES:
        for data in inlet.recv_many(16):
            assert data == message(number)
            number += 1


def recv_view(inlet):
    for number in range(MESSAGES):
        with inlet.recv_view() as view:
            assert bytes(view) == message(number)


@pytest.mark.fault("H06")
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "EVENT_IDX"])
@pytest.mark.parametrize("receiver", [recv, recv_many, recv_view], ids=lambda f: f.__name__)
@pytest.mark.parametrize("sender", [send, send_many, reserve], ids=lambda f: f.__name__)
def test_what_one_thread_sends_another_receives(lane, sender, receiver, event_idx):
    r = lane(8, 2048, event_idx=event_idx)
    in_two_threads(r, sender, receiver)
    r.assert_at_rest()


@pytest.mark.fault("H06")
def test_what_one_thread_asks_another_answers(lane):
    def ask(outlet):
        for number in range(MESSAGES // 4):
            assert outlet.call(message(number), 200) == message(number)[::-1]

    def answer(inlet):
        for number in range(MESSAGES // 4):
            loan = inlet.recv_view()
            data = bytes(loan.view)
            assert data == message(number)
            loan.reply(data[::-1])
            loan.release()

    r = lane(8, 2048)
    in_two_threads(r, ask, answer)
    r.assert_at_rest()
