"""Endpoint: what driver and device have in common: one role on one device of a region.

An endpoint maps the region, holds the control connection, the doorbells and a watch on the peer's process, and waits on
all of them at once. No threads: whatever the coordinator or the kernel has to say is heard while the endpoint waits or
calls.

    attached ── start/DRIVER_OK ──▶ running ── stop, peer gone, closing ──▶ attached … ── close() ──▶ closed

If the coordinator ends, a running endpoint goes on; only control calls fail then, with CoordinatorGone. Who leaves then
says so itself: it takes its name out of its cell in the region, and rings.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final, NoReturn

from vqshm import spec
from vqshm.closing import Closing, close_all
from vqshm.errors import (
    CoordinatorGone,
    DeadlineExceeded,
    ForkedHandle,
    InvalidState,
    NotFound,
    PeerGone,
    ProtocolError,
    RegionShrunk,
    VqshmError,
)
from vqshm.host.connection import connect, rebuilt
from vqshm.host.handle import Handle
from vqshm.host.system import names, pages
from vqshm.host.system.liveness import ProcessId, Watch
from vqshm.memory import GuestMemory, Region, atomic
from vqshm.notify import Adaptive, Deadline, EventFd, Notifier, Semaphore, WaitStrategy, park_on
from vqshm.ring import QueueConfig
from vqshm.transport import GUEST_BASE, Channel, Manifest, Message

if TYPE_CHECKING:
    import mmap

    from vqshm.closing import Owned
    from vqshm.transport import DevicePlan, QueuePlan

CONTROL_TIMEOUT: Final = 5.0  # seconds; what a control call waits for the coordinator at most


class Endpoint(Closing):
    """One role on one device. Use `Driver.attach` or `Device.attach`. A context manager."""

    role = ""
    peer_role = ""

    def __init__(
        self,
        region: str,
        device: str | None,
        *,
        offer: Message,
        timeout: float | None,
        strategy: WaitStrategy | None,
    ) -> None:
        self.region = region
        self.strategy = strategy or Adaptive()
        self.features = 0  # negotiated
        self.peer: ProcessId | None = None
        self.coordinator_gone = False
        self.closing = False  # the coordinator is closing the region
        self._pid = os.getpid()
        self._closed = False
        self._gone = False  # and everything was given back
        self._watch: Watch | None = None
        self._events: list[Message] = []
        self._serial = 0  # of the last control call; its answer carries the same
        self._bells: list[Notifier] = []
        deadline = Deadline(timeout)
        if not atomic.ORDERED:
            raise InvalidState(
                f"the interpreted core ({atomic.FENCE}) cannot order memory accesses on this processor, so processes "
                "must not share rings with it; install vqshm where it finds a C compiler"
            )
        self._open_region(deadline)
        try:
            self.plan = self._choose(device)
            self._channel = connect(
                names.socket_path(region),
                region,
                max_fds=2 * len(self.plan.queues),
                coordinator=self.header.pid,
                deadline=deadline,
            )
            self._attach(offer, deadline)
        except BaseException:
            self._let_go()
            raise

    # -- attaching -----------------------------------------------------------------------------------------------------

    def _open_region(self, deadline: Deadline) -> None:
        """Map the region, after its header was checked."""
        fd, self.header, self._region_plan = names.open_plan(self.region, deadline=deadline)
        with fd:
            self._mapping: mmap.mmap = pages.map_object(fd.fileno(), self._region_plan.total_bytes)
        first = self._region_plan.manifest_bytes
        manifest = Manifest(Region(self._mapping, 0, first), self._region_plan)
        self.manifest = manifest
        self.memory = GuestMemory([(GUEST_BASE, memoryview(self._mapping)[first:])])

    def _choose(self, device: str | None) -> DevicePlan:
        devices = self._region_plan.devices
        if device is not None:
            return self._region_plan.device(device)
        if len(devices) > 1:
            known = ", ".join(plan.name for plan in devices)
            raise NotFound(f"region {self.region!r} has several devices, name one of: {known}", name=self.region)
        return devices[0]

    def _attach(self, offer: Message, deadline: Deadline) -> None:
        me = ProcessId.own()
        request = {"type": "attach", "role": self.role, "device": self.plan.name, **me._asdict(), **offer}
        reply, fds = self._ask(request, deadline)
        count = len(self.plan.queues)
        self.notify = reply.get("notify")
        if reply["type"] != "attached" or len(fds) != (2 * count if self.notify == "eventfd" else 0):
            close_all(fds)
            raise ProtocolError(f"the coordinator answered {reply['type']} with {len(fds)} descriptors to an attach")
        if self.notify == "eventfd":
            try:
                self._bells += map(EventFd.adopt, fds)
            except BaseException:
                close_all(fds)
                raise
        else:
            for purpose in "KC":
                bell = Semaphore.open(names.semaphore_name(self.region, purpose, self.plan.index))
                self._bells += [bell] * count
        self.kicks, self.calls = self._bells[:count], self._bells[count:]
        self.cells = self.manifest.device(self.plan.index)
        self.config = self.manifest.config(self.plan.index)

    def _queue_config(self, plan: QueuePlan) -> QueueConfig:
        """How both sides run a queue under the negotiated features."""
        return QueueConfig(
            plan.layout,
            event_idx=bool(self.features >> spec.VIRTIO_F_EVENT_IDX & 1),
            indirect=bool(self.features >> spec.VIRTIO_F_INDIRECT_DESC & 1),
            name=f"{self.region}/{self.plan.name} queue {plan.number}",
        )

    # -- control -------------------------------------------------------------------------------------------------------

    def _ask(self, request: Message, deadline: Deadline | None = None) -> tuple[Message, tuple[Owned, ...]]:
        """One control call. Events that come before the answer are kept. Raises what the coordinator answers."""
        self._check_usable()
        if self.coordinator_gone:
            self._no_coordinator()
        deadline = deadline or Deadline(CONTROL_TIMEOUT)
        try:
            self._channel.send(self._numbered(request), (), deadline)
            while True:
                message, fds = self._channel.await_next(deadline)
                if message.get("serial") == self._serial:
                    self._channel.accept()
                    break
                self._take_in(message)
        except DeadlineExceeded:
            raise DeadlineExceeded(self._unanswered(request)) from None
        except PeerGone as error:
            self._hear_last_words()
            does = "closed the connection" if ProcessId(*self.header[1:3]).alive else "is gone"
            raise CoordinatorGone(
                f"the coordinator of {self.region!r}, process {self.header.pid}, {does}: {error}", pid=self.header.pid
            ) from error
        self._digest()  # what came before the answer would wake nobody any more
        if message["type"] == "error":
            raise rebuilt(message)
        return message, fds

    def _tell(self, request: Message) -> None:
        """A control call whose answer nobody waits for. Does nothing if the coordinator is gone."""
        self._check_usable()
        if self.coordinator_gone:
            return
        try:
            self._channel.send(self._numbered(request), (), Deadline(CONTROL_TIMEOUT))
        except PeerGone:
            self._hear_last_words()

    def _numbered(self, request: Message) -> Message:
        """A request that says which answer belongs to it, unless it says so already."""
        if "serial" in request:
            return request
        self._serial = (self._serial + 1) & 0xFFFF_FFFF
        return {**request, "serial": self._serial}

    def _hear_last_words(self) -> None:
        """The coordinator is gone; what it said before is still there."""
        with contextlib.suppress(PeerGone):
            while (received := self._channel.look()) is not None:
                self._take_in(received.message)
        self.coordinator_gone = True

    def _unanswered(self, request: Message) -> str:
        """Who is waited for: the message of a control call's deadline."""
        return f"the coordinator (process {self.header.pid}) did not answer {request['type']!r} in time"

    def _status(self, value: int, deadline: Deadline | None = None) -> int:
        """Write the status register; what it holds then."""
        return int(self._ask({"type": "status", "value": value}, deadline)[0]["value"])

    def hear(self) -> None:
        """Take in what the coordinator has sent meanwhile, without waiting. Raises RegionShrunk, ForkedHandle.

        Called after every sleep, before the rings are looked at again.
        """
        if os.getpid() != self._pid:
            self._check_usable()  # what a child takes in, its parent would never hear
        if not self._is_whole():
            raise RegionShrunk(
                f"somebody cut region {self.region!r} from {len(self._mapping)} to {self._mapping.size()} bytes, so it "
                "cannot be used any more; sealed memory (memory='memfd') cannot be cut",
                region=self.region,
            )
        while not self.coordinator_gone:
            try:
                received = self._channel.look()
            except PeerGone:
                self.coordinator_gone = True
                break
            except ProtocolError:
                self.coordinator_gone = True  # whatever that is, it is no coordinator
                raise
            if received is None:
                break
            self._take_in(received.message)
        self._digest()

    @property
    def has_news(self) -> bool:
        """Whether something was heard that could not be handled then, or not any more: `hear` does."""
        return bool(self._events) or self._channel.pending

    def _is_whole(self) -> bool:
        return self._mapping.size() >= len(self._mapping)

    def _digest(self) -> None:
        while self._events:
            event = self._events[0]
            self.closing |= event["what"] == "closing"
            self._on_event(event)
            del self._events[0]  # last, so that one that could not be handled (no descriptor left) is not lost

    def _take_in(self, message: Message) -> None:
        """Keep an event; drop the late answer to a call that nobody waits for any more. The next one is looked at then.

        Once interrupted it is called again with the same one, before any event is digested.
        """
        if message["type"] == "event":
            if not any(message is event for event in self._events):
                self._events.append(message)
        elif not self._serial:
            raise ProtocolError(f"the coordinator sent {message['type']!r} unasked")
        self._channel.drop()

    def _on_event(self, event: Message) -> None:
        """React to an event; for the roles."""

    def _watch_peer(self, process: ProcessId) -> None:
        self._forget_peer()
        self.peer = process
        self._watch = Watch(process)

    def _forget_peer(self) -> None:
        self.peer = None
        self._unwatch_peer()

    def _unwatch_peer(self) -> None:
        """It has ended, and that is known: it shall wake nobody any more."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    @property
    def peer_ended(self) -> bool:
        """Whether there was a peer and its process has ended."""
        return self._watch is not None and self._watch.ended

    @property
    def peer_gone(self) -> bool:
        """Whether there was a peer and it has ended; or left, where no coordinator is there to say so.

        For the latter its cell is believed. Who forges it ends this session only, as he could by its rings.
        """
        if self.coordinator_gone and self.peer is not None:
            holder: int = getattr(self.cells, f"{self.peer_role}_pid")
            return holder != self.peer.pid or self.peer_ended
        return self.peer_ended

    def peer_fileno(self) -> int:
        """The pidfd of the peer, readable once it has ended; -1 if there is no peer or it has left."""
        return -1 if self._watch is None else self._watch.fileno()

    # -- waiting -------------------------------------------------------------------------------------------------------

    def park(self, bells: list[Notifier], timeout: float | None) -> None:
        """Sleep until a doorbell rings, the coordinator speaks, the peer ends, or `timeout` seconds are over."""
        watch = [] if self.coordinator_gone else [self._channel.fileno()]
        if self.peer_fileno() >= 0:
            watch.append(self.peer_fileno())
        news = self.has_news or self.peer_gone  # nothing would wake us for what is known already
        park_on(list(dict.fromkeys(bells)), watch, 0 if news else timeout)
        self.hear()

    def fileno(self) -> int:
        """The control connection's descriptor, for event loops that wait for more than doorbells."""
        return self._channel.fileno()

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the role back.

        Never raises, may be called twice, and must be after an interruption; buffers still viewed stay mapped until the
        views die.
        """
        if self._gone:
            return
        self._closed = True
        if os.getpid() == self._pid:
            with contextlib.suppress(VqshmError, OSError):
                if self._is_whole():
                    self._leave()
                    self._ring_out()
                if not self.coordinator_gone:
                    self._channel.send({"type": "detach"}, (), Deadline(CONTROL_TIMEOUT))
        self._let_go()
        self._gone = True

    def _leave(self) -> None:
        """Write into the region what is to be written before this role is given back."""
        holder = f"{self.role}_pid"
        if getattr(self.cells, holder) == self._pid:
            setattr(self.cells, holder, 0)  # for whoever comes after a coordinator that is not there to hear the rest

    def _ring_out(self) -> None:
        """Wake the peer, which looks who is left, if there is no coordinator to tell it."""
        for bell in dict.fromkeys(self.kicks if self.role == "driver" else self.calls):
            bell.signal()

    def _let_go(self) -> None:
        self._forget_peer()
        for bell in self._bells:
            bell.close()
        channel: Channel | None = getattr(self, "_channel", None)
        if channel is not None:
            channel.close()

    def _check_usable(self) -> None:
        if self._closed:
            raise InvalidState(f"this {self.role} handle is closed")
        if os.getpid() != self._pid:
            raise ForkedHandle(
                f"this {self.role} handle was inherited through fork: attach again in the child", pid=self._pid
            )

    def _no_coordinator(self) -> NoReturn:
        raise CoordinatorGone(
            f"the coordinator of {self.region!r} (process {self.header.pid}) is gone", pid=self.header.pid
        )

    @property
    def handle(self) -> Handle:
        """What to send to another process, which attaches by it."""
        return Handle(self.region, self.plan.name)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"an attached {self.role} belongs to its process: send its `handle`, and attach by that")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.region}/{self.plan.name}{' closed' if self._closed else ''}>"
