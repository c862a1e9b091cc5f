"""Ends: what a sender and a receiver have in common: life, event loops, threads, forks."""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import TYPE_CHECKING, Any, NoReturn

from vqshm.closing import Closing
from vqshm.errors import InvalidState
from vqshm.message.ears import Ears

if TYPE_CHECKING:
    from types import TracebackType

    from vqshm.host.endpoint import Endpoint
    from vqshm.host.handle import Handle
    from vqshm.host.system.liveness import ProcessId
    from vqshm.notify import Notifier


class Lends(Closing):
    """Something whose `close` refuses while parts of it are lent out: InvalidState."""

    _left_by_error = False  # its block was left by an exception

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._left_by_error = True
            with contextlib.suppress(InvalidState):  # the block's own exception matters more
                self.close()


class End(Lends):
    """One end of a lane."""

    def __init__(self, endpoint: Endpoint, bell: Notifier) -> None:
        self._endpoint = endpoint
        self._pid = os.getpid()
        self._bell = bell  # that wakes this end
        self._own_ears: Ears | None = None
        _all.add(self)

    @property
    def peer(self) -> ProcessId | None:
        """The process on the other side; None if there is none."""
        return self._endpoint.peer

    @property
    def peer_gone(self) -> bool:
        """Whether the process on the other side has ended."""
        return self._endpoint.peer_gone

    @property
    def region(self) -> str:
        """The channel's name."""
        return self._endpoint.region

    @property
    def lane(self) -> str:
        """The lane's name in it."""
        return self._endpoint.plan.name

    @property
    def handle(self) -> Handle:
        """What to send to another process, which attaches by it."""
        return self._endpoint.handle

    @property
    def notify(self) -> Any:
        """How the two sides wake each other: "eventfd" or "semaphore"."""
        return self._endpoint.notify

    def fileno(self) -> int:
        """A descriptor for event loops: readable when this end may have work, or news of the other side.

        Level-triggered, as long as this end is asked (with `timeout=0`) whenever it is readable, until it has nothing
        more. Raises InvalidState for a channel of semaphores, which have nothing to watch.
        """
        self._endpoint._check_usable()  # noqa: SLF001 - an end is half an endpoint
        return self._ears.fileno()

    @property
    def _ears(self) -> Ears:
        """What this end sleeps on, made when it first sleeps: a lane of a fan never does."""
        if self._own_ears is None:
            self._own_ears = Ears([self])
        return self._own_ears

    def _follow_peer(self) -> None:
        """From now on, wake up when the present peer ends, and no other."""
        if self._own_ears is not None:
            self._own_ears.follow()

    def _remember_work(self) -> bool:
        """There is work. An event loop shall see so until this end is asked in vain: True."""
        self._ears.remember_work()
        return True

    def _hang_up(self) -> None:
        """Give everything back but the memory."""
        if self._own_ears is not None:
            self._own_ears.close()
        self._endpoint.close()

    def _refuse_work(self) -> None:
        """Nothing works any more through this end, in a forked child."""
        raise NotImplementedError

    def __reduce__(self) -> NoReturn:
        raise TypeError("an end of a lane belongs to its process: send its `handle`, and attach by that")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.region}/{self.lane}>"


_all: weakref.WeakSet[End] = weakref.WeakSet()


def _forked() -> None:
    for end in _all:
        end._refuse_work()  # noqa: SLF001 - our own


os.register_at_fork(after_in_child=_forked)
