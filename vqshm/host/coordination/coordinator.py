"""Coordinator: makes a region, publishes it, and keeps the register of each device in it.

It takes no part in the exchange of buffers: once a device runs, driver and device meet in the region and ring each
other's doorbells. If the coordinator dies, they go on.

    with Coordinator("demo", [DeviceSpec("echo0", VQSHM_ID_ECHO)]) as coordinator:
        coordinator.serve()          # until close(), Ctrl-C, or the moment `stop` becomes readable

One process, one thread, one poll loop. No client can hold up another: nothing here blocks on a client, and one that
misbehaves or does not read is dropped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vqshm import errors
from vqshm.closing import Closing, owned
from vqshm.errors import (
    ForkedHandle,
    InvalidState,
    NameInUse,
    PeerGone,
    ProtocolError,
    RuleError,
    UntrustedPeer,
    VqshmError,
)
from vqshm.host.coordination.client import Client
from vqshm.host.coordination.ground import MEMORY_KINDS, Ground, MemoryKind, take_name
from vqshm.host.coordination.slot import Slot
from vqshm.host.system import names
from vqshm.host.system.liveness import ProcessId, Watch
from vqshm.host.system.pages import NO_HINTS, Hints
from vqshm.memory import Region
from vqshm.notify import EventFd, Notifier, Semaphore
from vqshm.transport import (
    MAX_FDS,
    Channel,
    DeviceSpec,
    Manifest,
    Message,
    check_name,
    check_peer,
    clip,
    plan,
)

if TYPE_CHECKING:
    import mmap

    from vqshm.closing import Owned
    from vqshm.notify.notifier import Kind

MAX_CLIENTS = 256  # connections at a time; for one more the oldest without a role is dropped
BACKLOG = 64


class Coordinator(Closing):
    """Owner of one region.

    `name`: 1 to 31 of a-z 0-9 _ . -. `devices`: what is in it. `notify`: "eventfd" or "semaphore". `memory`: "named" in
    /dev/shm, or "memfd", sealed: no name there, and nobody can cut it. `hints`: wishes about its pages. Leftovers of a
    dead run under the same name are removed first.

    Raises NameInUse (nothing of the winner is touched), StaleSession if a dead coordinator's region is still worked in,
    ShmFull, UntrustedPeer, RuleError for an impossible plan.
    """

    def __init__(
        self,
        name: str,
        devices: Sequence[DeviceSpec],
        *,
        notify: Kind = "eventfd",
        memory: MemoryKind = "named",
        hints: Hints = NO_HINTS,
    ) -> None:
        self.name = check_name(name)
        self.notify: Kind = notify
        self.plan = plan(devices)
        if notify not in ("eventfd", "semaphore"):
            raise ValueError(f"notify is 'eventfd' or 'semaphore', not {notify!r}")
        if memory not in MEMORY_KINDS:
            raise ValueError(f"memory is one of {', '.join(MEMORY_KINDS)}, not {memory!r}")
        if (memory, notify) == ("memfd", "semaphore"):
            raise ValueError("a region without a name in /dev/shm has no semaphores there: use notify='eventfd'")
        if not all(device.queues for device in devices):
            raise RuleError("a device without queues has nothing to do here")
        if notify == "eventfd" and any(2 * len(device.queues) > MAX_FDS for device in devices):
            raise RuleError(
                f"with eventfd a device has at most {MAX_FDS // 2} queues: its doorbells travel in one message"
            )
        self._pid = os.getpid()
        self._closed = False
        self._gone = False  # and nothing is left of it
        self._ground: Ground | None = None
        self._clients: dict[int, Client] = {}
        self._watched: dict[int, Client] = {}
        self._slots: list[Slot] = []
        self._bells: list[Notifier] = []
        self._poller = select.poll()
        self._spare = _spare()
        try:
            with names.naming_lock():
                take_name(self.name)
                try:
                    self._ground = Ground(self.name, self.plan.total_bytes, memory, hints)
                    self._publish(self._ground)
                except BaseException as error:
                    if self._ground is not None or not isinstance(error, NameInUse):  # else it is somebody else's
                        names.remove(self.name)
                    raise
            _all.add(self)
        except BaseException:
            self.close()
            raise

    def _publish(self, ground: Ground) -> None:
        manifest = Manifest(Region(ground.memory), self.plan)
        for device in self.plan.devices:
            kicks, calls = self._doorbells(device.index, len(device.queues))
            self._slots.append(Slot(device, manifest.device(device.index), manifest.config(device.index), kicks, calls))
        self._listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        path = names.socket_path(self.name)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(BACKLOG)
        self._poller.register(self._listener, select.POLLIN)
        ground.publish(self.plan, self.notify)

    def _doorbells(self, device: int, queues: int) -> tuple[list[Notifier], list[Notifier]]:
        """The kicks and the calls of a device: an eventfd for each queue, or one semaphore, as none can be polled."""
        if self.notify == "eventfd":
            for _ in range(2 * queues):
                self._bells.append(EventFd.create())
            return self._bells[-2 * queues : -queues], self._bells[-queues:]
        for purpose in "KC":
            self._bells.append(Semaphore.create(names.semaphore_name(self.name, purpose, device)))
        kick, call = self._bells[-2:]
        return [kick] * queues, [call] * queues

    @property
    def memory(self) -> mmap.mmap:
        """The whole region, as it is mapped here."""
        return self._own_ground.memory

    @property
    def _own_ground(self) -> Ground:
        assert self._ground is not None  # noqa: S101 - it was made
        return self._ground

    # -- serving -------------------------------------------------------------------------------------------------------

    def serve(self, stop: int = -1) -> None:
        """Serve until descriptor `stop` becomes readable, `close()` was called, or an exception comes (Ctrl-C).

        After one that a signal handler raised there is nothing to do but `close`: a client may be half answered.
        """
        if stop >= 0:
            self._poller.register(stop, select.POLLIN)
        try:
            while not self._closed:
                if stop in self.step(None):
                    return
        finally:
            if stop >= 0:
                self._poller.unregister(stop)  # its number may be another descriptor by the next call

    def step(self, timeout: float | None = 0.0) -> list[int]:
        """Serve what is there, waiting for it at most `timeout` seconds (None: for ever).

        Descriptors that were ready. Raises ForkedHandle, RegionShrunk.
        """
        if os.getpid() != self._pid:
            raise ForkedHandle("this coordinator was inherited through fork, and serves in its parent", pid=self._pid)
        for client in self._clients.values():
            self._poller.modify(client.channel, client.channel.events)
        ready = [fd for fd, _ in self._poller.poll(None if timeout is None else timeout * 1000)]
        self._own_ground.check_whole()
        for fd in ready:
            if fd == self._listener.fileno():
                self._accept()
            elif fd in self._watched:
                self._check_ended(self._watched[fd])
            elif fd in self._clients:
                self._serve_client(self._clients[fd])
        for client in [c for c in self._clients.values() if c.failed]:
            self._drop(client)
        return ready

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                self._turn_away()
            return
        try:
            peer = check_peer(connection)
        except UntrustedPeer:
            connection.close()
            return
        if len(self._clients) >= MAX_CLIENTS:
            silent = next((client for client in self._clients.values() if not client.role), None)
            if silent is None:
                connection.close()
                return
            self._drop(silent)  # of those without a role the one that had the most time to ask for it
        client = Client(Channel(connection), peer.pid)
        self._clients[client.channel.fileno()] = client
        self._poller.register(client.channel, select.POLLIN)

    def _turn_away(self) -> None:
        """No descriptors are left. Who connects is accepted with the spare one, or would be reported for ever."""
        self._spare.close()
        with contextlib.suppress(OSError):
            self._listener.accept()[0].close()
        self._spare = _spare()

    def _check_ended(self, client: Client) -> None:
        """Drop it if its process ended. The event may be older than the watch: descriptors are used again."""
        if client.watch is not None and client.watch.ended:
            self._drop(client)

    def _serve_client(self, client: Client) -> None:
        try:
            client.channel.flush()
            received = client.channel.receive_now()
            if received is not None:
                self._answer(client, received.message)
        except (OSError, ProtocolError) as error:  # OSError: PeerGone, or no descriptor left to serve it with
            if isinstance(error, ProtocolError):
                client.reply(_error(error))
            self._drop(client)

    def _answer(self, client: Client, message: Message) -> None:
        client.serial = message.get("serial", 0)
        try:
            self._dispatch(client, message)
        except (PeerGone, ProtocolError):
            raise
        except VqshmError as error:
            client.reply(_error(error))

    def _dispatch(self, client: Client, message: Message) -> None:
        kind = message["type"]
        if kind == "attach":
            self._attach(client, message)
        elif kind in {"list", "stat"}:
            client.reply(self._listing())
        elif kind == "open":
            self._open(client, writable=message["writable"])
        elif kind == "give_up":
            self._slots[self.plan.device(message["device"]).index].give_up(message["reason"])
            client.reply({"type": "ok"})
        elif not client.role:
            raise InvalidState(f"{kind!r} before attach")
        else:
            self._dispatch_role(client, self._slots[client.device], message)

    def _dispatch_role(self, client: Client, slot: Slot, message: Message) -> None:
        kind = message["type"]
        if kind == "detach":
            client.reply({"type": "ok"})
            self._drop(client, detached=True)
        elif client.role == "driver" and kind == "features":
            slot.write_features(client, message["bits"])
        elif client.role == "driver" and kind == "status":
            slot.write_status(client, message["value"])
        elif client.role == "device" and kind == "stopped":
            slot.stopped(client)
        elif client.role == "device" and kind == "needs_reset":
            slot.needs_reset(client, message["reason"], message.get("queue", 0))
        elif client.role == "device" and kind == "config":
            slot.write_config(client, message["offset"], message["data"])
        else:
            raise ProtocolError(f"{kind!r} is not a message of the {client.role}")

    def _attach(self, client: Client, message: Message) -> None:
        if client.role:
            raise InvalidState("this connection is attached already")
        slot = self._slots[self.plan.device(message["device"]).index]
        process = ProcessId(message["pid"], message["start_time"])
        if process.pid != client.process.pid or not process.alive:
            # The kernel told us who connected (SO_PEERCRED); a forked child or a liar says something else.
            raise UntrustedPeer(f"process {client.process.pid} says it is {process.pid}", pid=client.process.pid)
        client.process = process
        watch = Watch(process)
        try:
            if watch.ended:
                raise PeerGone(f"process {process.pid} ended", pid=process.pid)  # noqa: TRY301
            if message["role"] == "driver":
                slot.attach_driver(client)
            else:
                slot.attach_device(client, message["features"], message.get("config", b""))
        except BaseException:
            watch.close()
            raise
        client.role, client.device, client.watch = message["role"], slot.plan.index, watch
        self._watched[watch.fileno()] = client
        self._poller.register(watch, select.POLLIN)
        doorbells = [bell.fileno() for bell in slot.kicks + slot.calls] if self.notify == "eventfd" else []
        reply = {"type": "attached", "region": self.name, "notify": self.notify, **slot.attached()}
        client.reply(reply, tuple(fd for fd in doorbells if fd is not None))
        slot.introduce()

    def _open(self, client: Client, *, writable: bool) -> None:
        """Hand over the memory, with no more rights than were asked for."""
        fd = self._own_ground.fd
        if writable:
            client.reply({"type": "opened"}, (fd,))
            return
        with owned(os.open, f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC) as reader:
            client.reply({"type": "opened"}, (reader.fileno(),))

    def _listing(self) -> Message:
        me = ProcessId.own()
        devices = [
            {
                "name": slot.plan.name,
                "device_id": slot.plan.device_id,
                "queues": len(slot.plan.queues),
                **slot.attached(),
            }
            for slot in self._slots
        ]
        return {"type": "listing", "region": self.name, **me._asdict(), "devices": devices}

    def _drop(self, client: Client, *, detached: bool = False) -> None:
        """Forget a client: it left, its process ended, or it broke a rule."""
        if self._clients.pop(client.channel.fileno(), None) is None:
            return
        self._poller.unregister(client.channel)
        client.channel.close()
        if client.watch is not None:
            if self._watched.pop(client.watch.fileno(), None) is not None:
                self._poller.unregister(client.watch)
            client.watch.close()
        if client.role:
            self._slots[client.device].lost(client, detached=detached)

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Tell everybody, close the sockets, remove the names.

        Who has the region mapped keeps it. May be called twice, and must be after an interruption. While `serve` runs,
        call it from the same thread only.
        """
        if self._gone or os.getpid() != self._pid:
            return
        self._closed = True
        for client in self._clients.values():
            client.event("closing")
        self._close_descriptors()
        if self._ground is not None:
            with names.naming_lock():
                if self._ground.has_name():
                    names.remove(self.name)
        _all.discard(self)
        self._gone = True

    def _close_descriptors(self) -> None:
        for client in self._clients.values():
            client.channel.close()
            if client.watch is not None:
                client.watch.close()
        self._clients.clear()
        self._watched.clear()
        for thing in (getattr(self, "_listener", None), self._ground):
            if thing is not None:
                thing.close()
        for bell in self._bells:
            bell.close()
        self._spare.close()

    def __repr__(self) -> str:
        return f"<Coordinator {self.name!r} {'closed' if self._closed else f'{len(self._clients)} clients'}>"


def _error(error: VqshmError) -> Message:
    kind = next(k for k in type(error).__mro__ if getattr(errors, k.__name__, None) is k)
    return {"type": "error", "kind": kind.__name__, "message": clip(str(error))}


def _spare() -> Owned:
    return owned(os.open, os.devnull, os.O_RDONLY | os.O_CLOEXEC)


# A forked child holds the sockets of a coordinator, too; nobody would see the end of the parent by them any more.
_all: weakref.WeakSet[Coordinator] = weakref.WeakSet()


def _forget_all() -> None:
    for coordinator in list(_all):
        coordinator._close_descriptors()  # noqa: SLF001 - the same module
    _all.clear()


os.register_at_fork(after_in_child=_forget_all)
