"""Iceoryx: iceoryx2, publish-subscribe for the messages and an event for waking, nothing lost on the way.

Everything it puts into the file system carries our own prefix, so that what killed processes leave can be removed
without touching other users of iceoryx2.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from vqshm.bench.peers.base import Mode, Peer, load, remove_tagged

_ALL = frozenset({"oneway", "roundtrip", "fanin", "fanout", "objects", "idle", "wakeup"})
PATIENCE = 20.0  # seconds for the other side to show


class Iceoryx(Peer):
    """A copy into a loan; a copy out of the sample."""

    name = group = package = module = "iceoryx2"
    takes = _ALL
    fan_out = "broadcast"
    events = True  # else the receiver looks again and again

    def tear_down(self) -> None:
        """Remove whatever carries our prefix."""
        remove_tagged(self.tag)
        shutil.rmtree(self._root(), ignore_errors=True)

    def _root(self) -> Path:
        return Path(tempfile.gettempdir()) / f"{self.tag}.iox2"

    def _open(self) -> tuple[Any, Any, Any]:
        iox2 = load("iceoryx2")
        iox2.set_log_level(iox2.LogLevel.Error)
        config = iox2.config.default()
        config.global_cfg.prefix = iox2.FileName.new(f"{self.tag}_")
        config.global_cfg.root_path = iox2.Path.new(str(self._root()))
        self._node = iox2.NodeBuilder.new().config(config).create(iox2.ServiceType.Ipc)
        messages = (
            self._node.service_builder(iox2.ServiceName.new("messages"))
            .publish_subscribe(iox2.Slice[ctypes.c_uint8])
            .enable_safe_overflow(False)  # noqa: FBT003 - a builder
            .subscriber_max_buffer_size(self.depth)
            .subscriber_max_borrowed_samples(4)
            .max_publishers(max(2, self.senders))
            .max_subscribers(max(2, self.receivers))
            .max_nodes(16)
            .open_or_create()
        )
        event = None
        if self.events:
            builder = self._node.service_builder(iox2.ServiceName.new("event")).event()
            event = builder.max_notifiers(16).max_listeners(16).max_nodes(16).open_or_create()
        return iox2, messages, event

    def _loaner(self) -> tuple[Callable[[int], Any], Callable[[], Any]]:
        """How to get memory to fill, and how to wake the receiver after sending it."""
        iox2, messages, event = self._open()
        self._publisher = (
            messages.publisher_builder()
            .initial_max_slice_len(self.size)
            .backpressure_strategy(iox2.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        self._notifier = event.notifier_builder().create() if event else None
        # What is sent before a subscriber is connected would be lost.
        _await(lambda: messages.dynamic_config.number_of_subscribers >= self.receivers)
        self._publisher.update_connections()
        return self._publisher.loan_slice_uninit, self._notifier.notify if self._notifier else lambda: None

    def sender(self, index: int) -> Callable[[Any], Any]:  # noqa: ARG002 - all connect alike
        """Loan, copy, send, notify."""
        loan, notify = self._loaner()
        copy = ctypes.memmove

        def send(message: Any) -> None:
            if type(message) is memoryview:  # an answer made of a view
                message = (ctypes.c_char * len(message)).from_buffer(message)
            sample = loan(len(message))
            copy(sample.payload_ptr, message, len(message))
            sample.assume_init().send()
            notify()

        return send

    def _samples(self) -> Callable[[], Any]:
        """How to get the next sample."""
        iox2, messages, event = self._open()
        self._subscriber = messages.subscriber_builder().buffer_size(self.depth).create()
        self._listener = event.listener_builder().create() if event else None
        receive = self._subscriber.receive
        # Until the first receive(), it drops what exceeds the buffer, in spite of RetryUntilDelivered.
        _await(lambda: messages.dynamic_config.number_of_publishers >= self.senders)
        receive()
        if self._listener is None:
            wait = _spin(os.sched_yield)
        else:
            timed_wait, second = self._listener.timed_wait, iox2.Duration.from_secs(1)
            wait = lambda: timed_wait(second)  # noqa: E731 - one line either way

        def next_sample() -> Any:
            sample = receive()
            while sample is None:
                wait()
                sample = receive()
            return sample

        return next_sample

    def receiver(self, index: int) -> Callable[[], Any]:  # noqa: ARG002 - all connect alike
        """A copy of each sample."""
        next_sample, copy = self._samples(), ctypes.string_at

        def recv() -> bytes:
            sample = next_sample()
            payload = sample.payload()
            return copy(payload.data_ptr, payload.number_of_elements)

        return recv


class IceoryxView(Iceoryx):
    """A copy into a loan; the sample looked at in place."""

    mode: ClassVar[Mode] = "view"
    takes = frozenset({"oneway", "roundtrip"})

    def receiver(self, index: int) -> Callable[[], Any]:  # noqa: ARG002 - all connect alike
        """A view of each sample."""
        next_sample = self._samples()

        def recv() -> Any:
            self._sample = next_sample()
            return self._sample.payload().as_memory_view()

        return recv

    def release(self) -> None:
        """Drop the sample."""
        self._sample = None


class IceoryxReserve(IceoryxView):
    """The loan filled in place; the sample looked at in place."""

    mode: ClassVar[Mode] = "reserve"
    takes = frozenset({"oneway"})

    def sender(self, index: int) -> Callable[[Any], Any]:  # noqa: ARG002 - all connect alike
        """Loan, stamp both ends, send, notify."""
        loan, notify = self._loaner()
        copy, size = ctypes.memmove, self.size

        def send(head: bytes) -> None:
            sample = loan(size)
            place = sample.payload_ptr
            copy(place, head, 16)
            copy(place + size - 8, head, 8)
            sample.assume_init().send()
            notify()

        return send


class IceoryxSpin(Iceoryx):
    """Without the event: the receiver never sleeps."""

    name = "iceoryx2 spinning"
    takes = frozenset({"roundtrip"})
    events = False


class IceoryxSpinView(IceoryxView):
    """Without the event, and looked at in place."""

    name = "iceoryx2 spinning"
    takes = frozenset({"roundtrip"})
    events = False


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the other side did not connect")
        time.sleep(0.005)  # it offers no event for this


def _spin(give_way: Callable[[], None]) -> Callable[[], None]:
    looks = 0

    def wait() -> None:
        nonlocal looks
        looks += 1
        if looks > 200:
            looks = 0
            give_way()

    return wait


ICEORYX: tuple[type[Peer], ...] = (Iceoryx, IceoryxView, IceoryxReserve, IceoryxSpin, IceoryxSpinView)
