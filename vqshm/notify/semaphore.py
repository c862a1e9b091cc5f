"""POSIX semaphore: a wake-up by name, for sides that cannot be handed a file descriptor.

Rules
- A semaphore cannot be polled. A side that waits for one looks at everything else (the peer's pidfd, the control
  socket) only between slices of a wait; see `park_on`.
- Its value is kept at 0 or 1 as far as the two sides behave; a value beyond that is only a wake-up.
- Names are made with O_EXCL and mode 0600. One that is opened must belong to this user: a name squatted by somebody
  else would let them hold us up, or wake us for ever.
- Names outlive processes: whoever made one calls `unlink`.
- A signal's handler runs up to 20 ms late while somebody waits for one.

The kernel measures the timeout against the wall clock. When that is set back during a slice, the slice is longer by as
much, unless a wake-up ends it.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

from vqshm.closing import Closing
from vqshm.errors import InvalidState, NameInUse, NotFound, UntrustedPeer
from vqshm.memory import atomic
from vqshm.notify.wait import SLICE_SECONDS, Deadline

_NAME: Final = re.compile(r"/[A-Za-z0-9_.-]{1,200}")
# Those that come from outside: the others say that something here went wrong, and must not wait.
_SIGNALS: Final = signal.valid_signals() - {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
# Without the Python around it, at whose door an exception could come before anything is done.
_mask: Final = importlib.import_module("_signal").pthread_sigmask
_MOST_CLEARED: Final = 64  # counts; a peer that pushes the value up for ever costs spurious wake-ups, not all our time


class Semaphore(Closing):
    """One named semaphore used as a wake-up. A context manager; leaving it closes and does not unlink."""

    kind: Final = "semaphore"

    def __init__(self, handle: Any, name: str) -> None:
        """Own an open `posix_ipc.Semaphore`; see `create` and `open`."""
        self.name = name
        self._handle = handle

    @classmethod
    def create(cls, name: str) -> Self:
        """Make one, nothing pending. `name` is a slash and 1 to 200 letters, digits, dots, dashes, underscores.

        Raises: NameInUse, ValueError for a name of another shape.
        """
        _check_name(name)
        posix_ipc = _library()
        try:
            with numbered():
                return cls(posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600, initial_value=0), name)
        except posix_ipc.ExistentialError as error:
            raise NameInUse(f"a semaphore {name} exists already", name=name) from error

    @classmethod
    def open(cls, name: str) -> Self:
        """Open one that exists.

        Raises: NotFound, UntrustedPeer if it belongs to another user, ValueError for a name of another shape.
        """
        _check_name(name)
        posix_ipc = _library()
        try:
            with numbered():
                opened = cls(posix_ipc.Semaphore(name), name)
        except posix_ipc.ExistentialError as error:
            raise NotFound(f"there is no semaphore {name}", name=name) from error
        except posix_ipc.PermissionsError as error:
            raise UntrustedPeer(f"semaphore {name} does not let this user in", name=name) from error
        try:
            _check_owner(name)
        except BaseException:
            opened.close()
            raise
        return opened

    def signal(self) -> None:
        """Make a wake-up pending."""
        handle = self._open()
        # Whoever consumed the last wake-up arms, fences and looks again. This fence pairs with that one: either we see
        # the value they left, or they see the work that we announce here.
        atomic.fence()
        if handle.value == 0:
            try:
                handle.release()
            except OSError:
                return  # EOVERFLOW: somebody pushed the value to its maximum meanwhile, so a wake-up is pending

    def clear(self) -> None:
        """Consume what is pending, or at least 64 of it."""
        handle = self._open()
        for _ in range(_MOST_CLEARED):
            if not _acquire(handle, 0):
                return

    def wait(self, timeout: float | None = None) -> bool:
        """Block until a wake-up is pending and consume it; False after `timeout` seconds (None: never)."""
        handle = self._open()
        deadline = Deadline(timeout)
        while True:
            left = deadline.remaining()
            if _acquire(handle, SLICE_SECONDS if left is None else left):
                self.clear()
                return True
            if deadline.expired:
                return False

    def fileno(self) -> None:
        """Return None: a semaphore has no descriptor."""

    def close(self) -> None:
        """Close the handle; a second call does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()

    def unlink(self) -> None:
        """Remove the name; open handles go on working. Raises NotFound."""
        unlink_semaphore(self.name)

    def _open(self) -> Any:
        if self._handle is None:
            raise InvalidState(f"semaphore {self.name} is closed", name=self.name)
        return self._handle

    def __repr__(self) -> str:
        return f"<Semaphore {self.name}{' closed' if self._handle is None else ''}>"


def unlink_semaphore(name: str) -> None:
    """Remove a semaphore's name, whoever made it. Raises NotFound."""
    _check_name(name)
    posix_ipc = _library()
    try:
        posix_ipc.unlink_semaphore(name)
    except posix_ipc.ExistentialError as error:
        raise NotFound(f"there is no semaphore {name}", name=name) from error


@contextlib.contextmanager
def numbered() -> Iterator[None]:
    """posix_ipc tells of the limit of open files in words only: give that error its number."""
    try:
        yield
    except OSError as error:
        if error.errno is not None or type(error) is not OSError:
            raise
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error


def _library() -> Any:
    # On a free-threaded Python importing it turns the GIL back on: only those who use semaphores should pay for that.
    import posix_ipc  # noqa: PLC0415

    return posix_ipc


def _acquire(handle: Any, seconds: float) -> bool:
    """Take one off, waiting for it at most so long, or until about the next signal."""
    posix_ipc = _library()
    if seconds <= 0:
        try:
            handle.acquire(0)
        except posix_ipc.BusyError:
            return False
        return True
    before = _mask(signal.SIG_BLOCK, ())
    try:
        # posix_ipc runs the handlers of signals, and drops what they raise, unless that is KeyboardInterrupt: a SIGTERM
        # that shall end the process would not. So they run when the signals are let in again.
        _mask(signal.SIG_BLOCK, _SIGNALS)
        handle.acquire(min(seconds, SLICE_SECONDS))
    except (posix_ipc.BusyError, posix_ipc.SignalError):
        return False
    finally:
        _mask(signal.SIG_SETMASK, before)
    return True


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no semaphore name: a slash, then 1 to 200 letters, digits, or one of . _ -")


def _check_owner(name: str) -> None:
    """Raise UntrustedPeer unless its file is this user's. glibc puts `sem.` before the name, musl nothing."""
    for file in (f"sem.{name[1:]}", name[1:]):
        try:
            owner = Path("/dev/shm", file).lstat().st_uid
        except FileNotFoundError:
            continue
        if owner != os.geteuid():
            raise UntrustedPeer(f"semaphore {name} belongs to user {owner}", name=name, uid=owner)
        return
    raise NotFound(f"semaphore {name} was removed while it was being opened", name=name)
