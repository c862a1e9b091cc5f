"""Eventfd: a kernel counter that is a file descriptor, so it can be polled, awaited and sent over a Unix socket.

Rules
- The counter's value means nothing; zero or not zero is the whole message.
- Whoever holds the descriptor can write to it: a wake-up proves nothing, and a full counter is only a wake-up.
- A descriptor that came from somebody else is proved to be an eventfd before it is used: reading a pipe or a terminal
  in its place would block, or take somebody's data.

O_NONBLOCK belongs to the open file, which both sides share. A peer who means harm can take it away and fill the
counter to 2^64-2; a signal then blocks until the counter is read, or until Ctrl-C. Only a process of our own user gets
that far, and it could as well send SIGSTOP.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NoReturn, Self

from vqshm.closing import owned
from vqshm.errors import InvalidState, ProtocolError
from vqshm.notify import kernel
from vqshm.notify.wait import Deadline, park_on

if TYPE_CHECKING:
    from types import TracebackType

    from vqshm.closing import Owned
    from vqshm.notify.notifier import Notifier

_CLOSED: Final = -1


class EventFd:
    """One eventfd, non-blocking and close-on-exec. A context manager, as `Closing`, which no compiled class can be."""

    def __init__(self, owner: Owned) -> None:
        """Use what `owner` owns, which the caller knows to be an eventfd; see `create` and `adopt`."""
        self._owner = owner
        self._fd = owner.fileno()

    @classmethod
    def create(cls) -> Self:
        """Make one, nothing pending. Raises OSError (EMFILE, ENFILE)."""
        return cls(owned(os.eventfd, 0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    @classmethod
    def adopt(cls, owner: Owned) -> Self:
        """Use a descriptor that somebody sent.

        Raises: ProtocolError if it is not a plain eventfd; it is closed then.
        """
        try:
            fd = owner.fileno()
            _check_is_eventfd(fd)
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)  # noqa: FBT003 - the argument has no name
        except BaseException:
            with contextlib.suppress(OSError):
                owner.close()
            raise
        return cls(owner)

    @property
    def kind(self) -> Literal["eventfd"]:
        """As `Notifier.kind`."""
        return "eventfd"

    def fileno(self) -> int:
        """Return the descriptor. Raises InvalidState when closed."""
        if self._fd == _CLOSED:
            raise InvalidState("this eventfd is closed")
        return self._fd

    def signal(self) -> None:
        """Make a wake-up pending."""
        kernel.ring(self.fileno())

    def clear(self) -> None:
        """Consume what is pending."""
        kernel.hush(self.fileno())

    def wait(self, timeout: float | None = None) -> bool:
        """Block until a wake-up is pending and consume it; False after `timeout` seconds (None: never)."""
        deadline = Deadline(timeout)
        while not park_on([self], (), deadline.remaining()):
            if deadline.expired:
                return False
        return True

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        self._fd = _CLOSED
        self._owner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an eventfd belongs to its process: send its descriptor")

    def __repr__(self) -> str:
        return f"<EventFd {'closed' if self._fd == _CLOSED else self._fd}>"


def ring(bell: Notifier) -> None:
    """Signal, whatever interrupts us: the other side sleeps, and nobody would wake it later for what was shown now."""
    try:
        if isinstance(bell, EventFd):
            event = bell
            event.signal()
        else:
            bell.signal()
    except BaseException:
        bell.signal()
        raise


def _check_is_eventfd(fd: int) -> None:
    """Raise ProtocolError unless the kernel calls `fd` an eventfd that a read sets back to zero."""
    try:
        target = Path(f"/proc/self/fd/{fd}").readlink()
        details = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise ProtocolError(f"descriptor {fd} cannot be examined: {error}", fd=fd) from error
    if str(target) != "anon_inode:[eventfd]":
        raise ProtocolError(f"an eventfd was announced, but descriptor {fd} is {target}", fd=fd)
    # EFD_SEMAPHORE: a read takes one off the counter, so `clear` would not clear. Older kernels do not tell.
    if "eventfd-semaphore: 1" in details:
        raise ProtocolError(f"descriptor {fd} is an eventfd that counts down by one (EFD_SEMAPHORE)", fd=fd)
