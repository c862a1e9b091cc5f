"""Connection: how a process reaches the coordinator of a region.

The socket lies in a directory of this user alone, and who listens there is asked of the kernel before a word is said.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any, Final

from vqshm import errors
from vqshm.closing import close_all
from vqshm.errors import CoordinatorGone, DeadlineExceeded, PeerGone, ProtocolError, VqshmError
from vqshm.transport import Channel, Message, check_peer

if TYPE_CHECKING:
    from pathlib import Path

    from vqshm.closing import Owned
    from vqshm.notify import Deadline

_LONGEST: Final = 3600.0  # seconds; what a connection waits for a place in the coordinator's backlog at most


def connect(path: Path, region: str, *, max_fds: int, coordinator: int, deadline: Deadline) -> Channel:
    """A control connection to the coordinator (a pid, for messages) of a region that exists.

    Raises CoordinatorGone, DeadlineExceeded, UntrustedPeer.
    """
    left = deadline.remaining()
    seconds = _LONGEST if left is None else min(left, _LONGEST)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        # Where the backlog is full, connecting waits; 0 would be for ever.
        patience = struct.pack("ll", int(seconds), max(1, int(seconds % 1 * 1e6)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        sock.connect(str(path))
        check_peer(sock)
        return Channel(sock, max_fds=max_fds)
    except BlockingIOError:
        sock.close()
        raise DeadlineExceeded(
            f"the coordinator of {region!r} (process {coordinator}) accepted no connection in time", pid=coordinator
        ) from None
    except OSError as error:
        sock.close()
        if isinstance(error, VqshmError):
            raise
        raise CoordinatorGone(
            f"region {region!r} exists, but its coordinator (process {coordinator}) does not answer at {path} "
            f"({error.strerror or error}); if it has ended, `vqshm clean` removes the region, and a new "
            "coordinator can take its name, once nobody works in it any more",
            name=region,
            pid=coordinator,
        ) from error
    except BaseException:
        sock.close()
        raise


def fetch_memory(path: Path, region: str, *, writable: bool, coordinator: int, deadline: Deadline) -> Owned:
    """The descriptor of a region's memory, from its coordinator. It proves nothing yet.

    Raises what `connect` raises, ProtocolError, and what the coordinator answers.
    """
    with connect(path, region, max_fds=1, coordinator=coordinator, deadline=deadline) as channel:
        try:
            channel.send({"type": "open", "writable": writable}, (), deadline)
            message, fds = channel.receive(deadline)
        except PeerGone as error:
            raise CoordinatorGone(
                f"the coordinator of {region!r}, process {coordinator}, ended or closed the connection", pid=coordinator
            ) from error
    if message["type"] == "opened" and len(fds) == 1:
        return fds[0]
    close_all(fds)
    if message["type"] == "error":
        raise rebuilt(message)
    raise ProtocolError(f"the coordinator answered {message['type']} with {len(fds)} descriptors to an open")


def rebuilt(message: Message) -> VqshmError:
    """The error that the coordinator answered."""
    kind: Any = getattr(errors, message["kind"], None)
    if isinstance(kind, type) and issubclass(kind, VqshmError):
        return kind(message["message"])
    return ProtocolError(f"the coordinator answered an unknown error {message['kind']!r}: {message['message']}")
