"""Channels and pairs of ends for the tests of messages; actors as in the tests of the host layer; see there."""

from __future__ import annotations

import contextlib

import pytest
from vqshm_harness import make_region, nursery, start

from vqshm import DeviceSpec, QueueSpec, Receiver, Sender
from vqshm.errors import InvalidState
from vqshm.spec import VQSHM_ID_LANE

__all__ = ["make_channel", "make_region", "nursery", "pair", "start"]


@pytest.fixture
def make_channel(make_region):
    """Make a channel in a coordinator process of its own, as `open_channel` does; by default with one lane."""

    def make(*lanes, size=64, buffers=1 << 18, notify="eventfd", name=None, restart="reset", attempts=None):
        queue = QueueSpec(size, buffers)
        devices = [
            DeviceSpec(lane, VQSHM_ID_LANE, (queue,), config_bytes=0, restart=restart, max_attempts=attempts)
            for lane in lanes or ("lane",)
        ]
        return make_region(*devices, notify=notify, name=name)

    return make


@pytest.fixture
def pair(make_channel):
    """Make a channel whose two ends are both in this process: (sender, receiver)."""
    ends: list[Sender | Receiver] = []

    def make(*, event_idx: bool = True, **kinds):
        name = make_channel(**kinds).name
        ends.append(Receiver.attach(name))
        ends.append(Sender.attach(name, event_idx=event_idx))
        return ends[-1], ends[-2]

    yield make
    for end in reversed(ends):
        with contextlib.suppress(InvalidState):
            end.close()
