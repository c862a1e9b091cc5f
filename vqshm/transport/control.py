"""Control channel: messages and file descriptors over a Unix socket, between a coordinator and one endpoint.

SOCK_SEQPACKET, because the kernel then keeps what belongs together: a frame arrives whole with its descriptors or not
at all. So there are no partial frames to keep for each client, one byte per second is no attack, and a descriptor never
drifts to another message. A frame is also sent whole or not at all, so giving up a send leaves the channel intact.

Rules
- Who is at the other end is asked of the kernel, before a single byte is read (`check_peer`).
- The kernel hands out no more descriptors than `max_fds`; a side that expects none sets 0, and none is ever opened.
- Whatever is wrong with a frame, every descriptor that came with it is closed.
- No exception of a signal handler loses a frame that arrived, or its descriptors: the kernel's answer is put into the
  inbox in one step, and stays there until `accept`.
- After a ProtocolError or PeerGone the channel is only good for closing.
- `receive_now`, `post` and `flush` never block, for a server of many; `send` and `receive` wait until a deadline.
  What a peer does not read is kept up to a limit, then the peer counts as broken.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from vqshm.closing import Closing, close_all, own, owned
from vqshm.errors import DeadlineExceeded, InvalidState, PeerGone, ProtocolError, UntrustedPeer, VqshmError
from vqshm.notify.wait import Deadline
from vqshm.transport.messages import MAX_FDS, MAX_FRAME, Message, decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vqshm.closing import Owned

MAX_UNSENT: Final = 64  # frames kept for a peer that does not read

_CREDENTIALS: Final = struct.Struct("iII")
_FOREVER: Final = Deadline(None)
_Arrival: TypeAlias = tuple[bytes, list[tuple[int, int, bytes]], int, Any]  # as `recvmsg` returns it


class Received(NamedTuple):
    """A message and its file descriptors, which now belong to the caller."""

    message: Message
    fds: tuple[Owned, ...]


class Credentials(NamedTuple):
    """Of the process that connected, or that listens, at the time it did so."""

    pid: int
    uid: int
    gid: int


class Channel(Closing):
    """One end of a connection. A context manager."""

    def __init__(self, sock: socket.socket, *, max_fds: int = 0) -> None:
        """Own `sock`, a connected Unix SEQPACKET socket; take up to `max_fds` (0..253) descriptors with a message."""
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET) or not 0 <= max_fds <= MAX_FDS:
            raise ValueError(f"a channel needs a Unix SEQPACKET socket and 0..{MAX_FDS} descriptors")
        sock.settimeout(0)
        self._sock = sock
        # CMSG_LEN, not CMSG_SPACE: its padding would let one more descriptor in.
        self._ancillary_room = socket.CMSG_LEN(max_fds * array.array("i").itemsize) if max_fds else 0
        self._unsent: deque[tuple[bytes, list[Owned]]] = deque()
        self._inbox: deque[_Arrival] = deque()
        self._first = _Opened(None)  # what is known of the first arrival
        self._sent: deque[tuple[bytes, int]] = deque(maxlen=1)

    def fileno(self) -> int:
        """Return the socket's descriptor, to be polled. Raises InvalidState when closed."""
        fd = self._sock.fileno()
        if fd < 0:
            raise InvalidState("this control channel is closed")
        return fd

    # -- for one peer: wait until a deadline ---------------------------------------------------------------------------

    def send(self, message: Message, fds: Sequence[int] = (), deadline: Deadline = _FOREVER) -> None:
        """Send a message; `fds` stay the caller's.

        Raises: DeadlineExceeded (nothing was sent then), PeerGone, ProtocolError for a message not in the table.
        """
        frame = encode(message, len(fds))
        while not self.flush() or not self._transmit(frame, fds):
            self._wait(select.POLLOUT, deadline, "read what was sent to it")

    def has_sent(self, message: Message) -> bool:
        """Whether this is what was sent last: for whoever was interrupted, and does not know how far it came."""
        return bool(self._sent) and self._sent[0][0] == encode(message)

    def receive(self, deadline: Deadline = _FOREVER) -> Received:
        """Wait for the next message. Raises DeadlineExceeded, PeerGone, ProtocolError."""
        received = self.await_next(deadline)
        self.accept()
        return received

    def await_next(self, deadline: Deadline = _FOREVER) -> Received:
        """As `receive`, but it stays the next one until `accept`."""
        while (received := self.look()) is None:
            self._wait(select.POLLIN, deadline, "send anything")
        return received

    # -- for many peers: never block -----------------------------------------------------------------------------------

    def receive_now(self) -> Received | None:
        """Return the next message; None if there is none yet. Raises PeerGone, ProtocolError."""
        received = self.look()
        if received is not None:
            self.accept()
        return received

    def look(self) -> Received | None:
        """As `receive_now`, but it stays the next one, and this very object, until `accept`."""
        self.fileno()
        if not self._inbox:
            options = MAX_FRAME + 1, self._ancillary_room, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            try:
                self._inbox.extend(map(self._sock.recvmsg, *([option] for option in options)))
            except BlockingIOError:
                return None
            except OSError as error:
                raise PeerGone(f"the control channel broke: {error}") from error
        first = self._own_first()
        if first.received is None:
            frame, _, flags, _ = self._inbox[0]
            try:
                _check_delivery(frame, flags)
                first.received = Received(decode(frame, len(first.fds)), tuple(first.fds))
            except VqshmError:
                self.drop()
                raise
        return first.received

    @property
    def pending(self) -> bool:
        """Whether something has arrived that was not accepted: `fileno()` need not be readable for it."""
        return bool(self._inbox)

    def accept(self) -> None:
        """What `look` returned is noted by the caller, who owns its descriptors from now on."""
        self._inbox.popleft()
        self._first = _Opened(None)

    def drop(self) -> None:
        """As `accept`, by one who wants none of its descriptors."""
        close_all(self._own_first().fds)
        self.accept()

    def _own_first(self) -> _Opened:
        """The first arrival, with an owner for each of its descriptors."""
        arrival = self._inbox[0]
        if self._first.arrival is not arrival:
            self._first = _Opened(arrival)
        fds = self._first.fds
        fds.extend(map(own, _descriptors(arrival[1])[len(fds) :]))
        return self._first

    def post(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message, or keep it (and copies of `fds`) until `flush` can.

        Raises: ProtocolError if the peer leaves too much unread, or for a message not in the table; PeerGone.
        """
        frame = encode(message, len(fds))
        if self.flush() and self._transmit(frame, fds):
            return
        if len(self._unsent) >= MAX_UNSENT:
            raise ProtocolError(f"the peer does not read: {MAX_UNSENT} messages wait for it", unsent=MAX_UNSENT)
        self._unsent.append((frame, [owned(os.dup, fd) for fd in fds]))

    def flush(self) -> bool:
        """Send what is kept, as far as the peer reads it; True when nothing is left. Raises PeerGone, ProtocolError."""
        while self._unsent:
            frame, fds = self._unsent[0]
            if not self._transmit(frame, [fd.fileno() for fd in fds]):
                return False
            self._unsent.popleft()
            close_all(fds)
        return True

    @property
    def events(self) -> int:
        """What to poll `fileno()` for: POLLIN, and POLLOUT while something is kept for `flush`."""
        return select.POLLIN | (select.POLLOUT if self._unsent else 0)

    def close(self) -> None:
        """Close the socket and drop what is kept; a second call does nothing."""
        self._sock.close()
        while self._inbox:
            self.drop()
        while self._unsent:
            close_all(self._unsent[0][1])
            self._unsent.popleft()

    def _transmit(self, frame: bytes, fds: Sequence[int]) -> bool:
        """Hand a frame to the kernel; False if the socket is full."""
        self.fileno()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            options = [frame], rights, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
            self._sent.extend(zip([frame], map(self._sock.sendmsg, *([option] for option in options)), strict=True))
        except BlockingIOError:
            return False
        except ConnectionError as error:
            raise PeerGone(f"the other side closed the control channel: {error}") from error
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:
                raise ProtocolError("the peer does not read: too many file descriptors wait for it") from error
            raise
        return True

    def _wait(self, event: int, deadline: Deadline, what: str) -> None:
        if deadline.expired:
            raise DeadlineExceeded(f"the other side of the control channel did not {what} in time")
        poller = select.poll()
        poller.register(self.fileno(), event)
        left = deadline.remaining()
        poller.poll(None if left is None else min(left, 3600.0) * 1000)


def peer_credentials(sock: socket.socket) -> Credentials:
    """Return who is at the other end of a connected Unix socket, as the kernel knows it (SO_PEERCRED)."""
    return Credentials(*_CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)))


def check_peer(sock: socket.socket) -> Credentials:
    """Return who is at the other end. Raises UntrustedPeer unless it runs as this very user; root is no exception."""
    peer = peer_credentials(sock)
    if peer.uid != os.geteuid():
        raise UntrustedPeer(f"process {peer.pid} belongs to user {peer.uid}, not to {os.geteuid()}", **peer._asdict())
    return peer


class _Opened:
    """How far an arrival was looked at."""

    def __init__(self, arrival: _Arrival | None) -> None:
        self.arrival = arrival
        self.fds: list[Owned] = []
        self.received: Received | None = None


def _check_delivery(frame: bytes, flags: int) -> None:
    if flags & socket.MSG_CTRUNC:
        raise ProtocolError("file descriptors were lost: more than expected here, or than this process may open")
    if flags & socket.MSG_TRUNC:
        raise ProtocolError(f"a frame has at most {MAX_FRAME} bytes")
    if not frame:
        raise PeerGone("the other side closed the control channel")


def _descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> tuple[int, ...]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return tuple(found)
