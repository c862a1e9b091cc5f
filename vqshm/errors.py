"""Every error vqshm raises, in one tree.

Three questions choose the branch: did *you* break a rule, did the *peer*, or is somebody *gone*?

    VqshmError
    ├── RuleError (ValueError)            a rule of the specification was broken; see `blame_peer` for whom
    │   ├── AddressOverflow               an address passed 2^64-1
    │   ├── GuestMemory                   an access to memory that does not exist
    │   ├── InvalidDescriptorIndex        an index that is not below the queue size          [2.7.5]
    │   ├── InvalidIndirectDescriptor     an indirect table inside an indirect table         [2.7.5.3.1]
    │   ├── InvalidIndirectDescriptorTable  its length is 0, too big or not a multiple of 16 [2.7.5.3]
    │   ├── InvalidChain                  readable after writable, written past its end …    [2.7.4.2]
    │   │   ├── DescriptorLoop            a chain longer than the table it lives in          [2.7.5.2]
    │   │   ├── ChainTooLong              more than 2^32-1 bytes in total                    [2.7.5.2]
    │   │   ├── ShortBuffer (EOFError)    fewer bytes than the protocol needs
    │   │   └── SplitOutOfBounds          split_at() behind the end
    │   ├── InvalidMaxSize, InvalidSize   not a power of two in 1..32768                     [2.7]
    │   ├── InvalidDescTableAlign, InvalidAvailRingAlign, InvalidUsedRingAlign               [2.7]
    │   ├── RingOverlap                   two ring areas share bytes
    │   ├── InvalidAvailRingIndex         avail.idx is more than a queue size ahead          [2.7.13.3]
    │   ├── InvalidUsedRingIndex          used.idx is ahead of what was offered              [2.7.8]
    │   ├── InvalidUsedId                 a used id that is not below the queue size         [2.7.8]
    │   ├── UsedIdNotInFlight             a used id that was never offered, or twice         [2.7.8]
    │   ├── InvalidUsedLength             more bytes written than the chain can hold         [2.7.8.2]
    │   ├── InvalidInflight               an in-flight area that no device leaves behind
    │   ├── MessageTooLarge               more bytes than the whole lane holds
    │   ├── NegotiationError              a feature set or status write nobody may make      [2.2, 3.1]
    │   └── VersionMismatch               a region of another version, size or byte order
    ├── LocalError                        you asked for something that cannot be now
    │   ├── QueueFull (queue.Full), QueueEmpty (queue.Empty)
    │   ├── QueueNotReady (RuntimeError), QueueBroken (RuntimeError), InvalidState (RuntimeError)
    │   ├── ForkedHandle (RuntimeError)   a handle inherited through fork
    │   ├── DeadlineExceeded (TimeoutError)
    │   │   ├── NoRoom                    a lane stayed full; it is a QueueFull, too
    │   │   └── NoMessage                 a lane stayed empty; it is a QueueEmpty, too
    │   ├── NotFound (FileNotFoundError), RoleTaken (PermissionError)
    │   ├── NameInUse (FileExistsError)
    │   │   └── StaleSession              its coordinator has ended, but others still work in the region
    │   ├── ShmFull (OSError ENOSPC)      the pages cannot be reserved
    │   ├── UntrustedPeer (PermissionError)
    │   ├── ReadOnlyMemory (PermissionError, TypeError)  a write into memory that was mapped to be looked at
    │   ├── OutOfBuffers (BlockingIOError)  the buffer pool has no room for the request
    │   └── MissingExtra (ImportError)    an optional package; the message is the pip command
    ├── PeerViolation                     whoever shares the memory or the socket broke a rule
    │   ├── (every RuleError, as `blame_peer` returns it)
    │   ├── ProtocolError                 a malformed, oversized or misplaced control message
    │   ├── RegionShrunk                  somebody cut the memory that all share
    │   └── DeviceNeedsReset              the device gave up: its status says so             [2.1.2]
    └── PeerGone (ConnectionError)        a process ended; with pid and what was in flight
        ├── RequestLost                   the device ended before it answered this request
        ├── EndOfMessages (EOFError)      the sender has left, and everything it sent was received
        └── CoordinatorGone

The twelve names of the seed (`virtio-queue`'s `Error`) are kept. `GuestMemory` here is the error; the memory itself is
`vqshm.memory.GuestMemory`.
"""

from __future__ import annotations

import errno
import queue
from typing import Any


class VqshmError(Exception):
    """Base of all. `facts` holds, for programs, what the message says: queue, index, limit, pid."""

    def __init__(self, message: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.facts = facts


# -- a rule of the specification ---------------------------------------------------------------------------------------


class RuleError(VqshmError, ValueError):
    """A rule of the specification was broken; local unless it is also a `PeerViolation`."""


class AddressOverflow(RuleError):
    """An address computed from a base and an offset passed 2^64-1."""


class GuestMemory(RuleError):
    """An access touched guest memory that does not exist."""


class InvalidDescriptorIndex(RuleError):
    """A descriptor index is not below the size of its table [2.7.5]."""


class InvalidIndirectDescriptor(RuleError):
    """An indirect table refers to another one, or INDIRECT and NEXT are set together [2.7.5.3.1]."""


class InvalidIndirectDescriptorTable(RuleError):
    """The length of an indirect table is 0, not a multiple of 16, or above 65535 entries [2.7.5.3]."""


class InvalidChain(RuleError):
    """A descriptor chain breaks a rule that has no name of its own."""


class DescriptorLoop(InvalidChain):
    """A chain has more descriptors than the table it lives in, so it must revisit one [2.7.5.2]."""


class ChainTooLong(InvalidChain):
    """A chain describes more than 2^32-1 bytes [2.7.5.2]."""


class ShortBuffer(InvalidChain, EOFError):
    """A chain holds fewer bytes than the protocol on top of it needs."""


class SplitOutOfBounds(InvalidChain):
    """`split_at` was asked for an offset behind the end."""


class InvalidMaxSize(RuleError):
    """A maximum queue size is not a power of two in 1..32768 [2.7]."""


class InvalidSize(RuleError):
    """A queue size is not a power of two in 1..max_size [2.7]."""


class InvalidDescTableAlign(RuleError):
    """The descriptor table is not aligned to 16 bytes [2.7]."""


class InvalidAvailRingAlign(RuleError):
    """The available ring is not aligned to 2 bytes [2.7]."""


class InvalidUsedRingAlign(RuleError):
    """The used ring is not aligned to 4 bytes [2.7]."""


class RingOverlap(RuleError):
    """Two of the three areas of a queue share bytes."""


class InvalidAvailRingIndex(RuleError):
    """avail.idx is more than a queue size ahead of the next chain to take [2.7.13.3]."""


class InvalidUsedRingIndex(RuleError):
    """used.idx is ahead of the number of chains in flight, or moved back [2.7.8]."""


class InvalidUsedId(RuleError):
    """A used element names an id that is not below the queue size [2.7.8]."""


class UsedIdNotInFlight(RuleError):
    """A used element names a chain that was not offered, or was already returned [2.7.8]."""


class InvalidUsedLength(RuleError):
    """A used element claims more bytes than the device-writable part of its chain holds [2.7.8.2]."""


class InvalidInflight(RuleError):
    """What an in-flight area says cannot be: another version or size, a chain twice, more than were offered."""


class MessageTooLarge(RuleError):
    """A message does not fit into a lane, however empty it is. `facts`: count, limit, in bytes."""


class NegotiationError(RuleError):
    """Feature bits or a status write that the tables of the specification forbid [2.1, 2.2, 3.1]."""


class VersionMismatch(RuleError):
    """A shared region carries another magic, version, size or byte order than this library lays out."""


# -- local: the call cannot be served now ------------------------------------------------------------------------------


class LocalError(VqshmError):
    """You asked for something that cannot be done in the present state."""


class QueueFull(LocalError, queue.Full):
    """Not enough free descriptors for the chain."""


class QueueEmpty(LocalError, queue.Empty):
    """Nothing to take."""


class QueueNotReady(LocalError, RuntimeError):
    """The queue was not activated, or was reset."""


class QueueBroken(LocalError, RuntimeError):
    """The queue stopped at a `PeerViolation` (its `__cause__`) and waits for a reset."""


class InvalidState(LocalError, RuntimeError):
    """A call or message that the present state does not allow."""


class ForkedHandle(LocalError, RuntimeError):
    """A handle was inherited through fork; attach again in the child."""


class DeadlineExceeded(LocalError, TimeoutError):
    """A wait ended at its deadline; the message says who is stalled."""


class NoRoom(DeadlineExceeded, QueueFull):
    """A lane was full until the deadline; the message says who holds what."""


class NoMessage(DeadlineExceeded, QueueEmpty):
    """No message, or no answer, came until the deadline."""


class NameInUse(LocalError, FileExistsError):
    """A living coordinator owns this name, or the object under it is not ours."""


class StaleSession(NameInUse):
    """A session outlived its coordinator and cannot be continued; the message says why, and who is alive."""


class NotFound(LocalError, FileNotFoundError):
    """No region or device of this name; the message lists those that exist."""


class RoleTaken(LocalError, PermissionError):
    """Another living process holds this role."""


class ShmFull(LocalError, OSError):
    """The pages of a region cannot be reserved; the message says how much is free and how to get more."""

    def __init__(self, message: str = "", **facts: Any) -> None:
        super().__init__(message, **facts)
        self.errno = errno.ENOSPC


class UntrustedPeer(LocalError, PermissionError):
    """A shared object or a peer belongs to another user."""


class ReadOnlyMemory(LocalError, PermissionError, TypeError):
    """Memory that was mapped to be looked at was written to; nothing was changed."""


class OutOfBuffers(LocalError, BlockingIOError):
    """The buffer pool has no room for the request now."""


class MissingExtra(LocalError, ImportError):
    """An optional package is not installed; the message is the pip command."""


# -- the peer ----------------------------------------------------------------------------------------------------------


class PeerViolation(VqshmError):
    """Whoever shares the memory or the socket broke a rule."""


class ProtocolError(PeerViolation):
    """A control message was malformed, too large, too deep or in the wrong place."""


class RegionShrunk(PeerViolation):
    """Somebody cut a region short: what lies behind its new end is gone. A sealed region (memfd) cannot be cut."""


class DeviceNeedsReset(PeerViolation, RuntimeError):
    """The device set DEVICE_NEEDS_RESET; reset it to go on [2.1.2]."""


class PeerGone(VqshmError, ConnectionError):
    """The process on the other side ended. `facts`: pid, role, in_flight."""


class RequestLost(PeerGone):
    """The device ended before it answered this request; nobody can know whether it was handled. `facts`: pid, queue.

    Where devices resume: each one that took it, as often as `max_attempts` says.
    """


class EndOfMessages(PeerGone, EOFError):
    """The sender has left, and everything it sent was received. `facts`: pid, ended (its process is no more)."""


class CoordinatorGone(PeerGone):
    """The coordinator ended; the data path goes on, control calls cannot."""


_blamed: dict[type[RuleError], type[PeerViolation]] = {}


def blame_peer(error: RuleError) -> PeerViolation:
    """Return `error` as one the peer committed: still of its own class, and a `PeerViolation` too.

    The one door through which a rule, checked by neutral code, becomes an accusation.
    """
    if isinstance(error, PeerViolation):
        return error
    kind = type(error)
    if kind not in _blamed:
        _blamed[kind] = type(kind.__name__, (PeerViolation, kind), {"__doc__": kind.__doc__, "__reduce__": _reduce})
    return _blamed[kind](str(error), **error.facts)


def _reduce(error: RuleError) -> tuple[Any, ...]:
    original = type(error).__mro__[2]
    return _restore, (original, str(error), error.facts)


def _restore(kind: type[RuleError], message: str, facts: dict[str, Any]) -> PeerViolation:
    return blame_peer(kind(message, **facts))
