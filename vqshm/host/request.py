"""Request: a chain the driver offered, with the buffers it leased for it, until the driver has read the answer.

A lease is a piece of the region, handed out by the driver's pool: `view` is the memory itself, no copy. Buffers of a
request go back to the pool at `release()`, or on leaving its `with` block; a view used after that raises ValueError, it
never shows somebody else's bytes. That holds for the views handed out here; a slice of a view is its maker's affair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

from vqshm.errors import InvalidState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from vqshm.errors import VqshmError
    from vqshm.memory import BufferPool, GuestMemory


_NOTHING: Final = memoryview(b"")


class Lease:
    """`count` bytes of shared memory, ours from `take` until released."""

    __slots__ = ("_pool", "address", "count", "view")

    def __init__(self, pool: BufferPool, count: int) -> None:
        self.address = -1
        self.count = count
        self.view = _NOTHING
        self._pool = pool

    def take(self, memory: GuestMemory) -> None:
        """Get the bytes. Raises OutOfBuffers."""
        self._pool.allocate(self.count, self)
        self.view = memory.view(self.address, self.count)

    @property
    def buffer(self) -> tuple[int, int]:
        """(guest address, bytes), as a queue takes it."""
        return self.address, self.count

    @property
    def released(self) -> bool:
        """Whether the bytes were given back, or never taken."""
        return not self._pool.has(self)

    def release(self) -> None:
        """Give the bytes back. May be called again, after an interruption, too.

        Raises InvalidState while something else looks at them.
        """
        if self._pool.has(self):
            if self.view is not _NOTHING:  # its taking was not interrupted
                _let_go_of([self.view])
            self._pool.release(self.address)


class Request:
    """What `Driver.submit` returns: in flight until `done`, then `written` and `output()` tell the answer."""

    __slots__ = (
        "_views",
        "done",
        "error",
        "offered_at",
        "private",
        "queue",
        "readable",
        "tag",
        "token",
        "writable",
        "written",
    )

    def __init__(
        self,
        queue: int,
        readable: Sequence[Lease],
        writable: Sequence[Lease],
        tag: Any = None,
        *,
        private: bool = False,
    ) -> None:
        self.queue = queue
        self.tag = tag  # the caller's own
        self.private = private  # of `Driver.request`, which hands it to nobody
        self.token = -1  # the queue's, while in flight
        self.done = False
        self.error: VqshmError | None = None  # why there is no answer and never will be
        self.written = 0  # bytes the device wrote, over all writable buffers in order
        self.offered_at = 0.0  # time.perf_counter() at submit, in seconds
        self.readable = readable
        self.writable = writable
        self._views: list[memoryview] = []  # handed out

    def output(self, index: int | None = None) -> bytes:
        """A copy of what the device wrote: to one writable buffer, or (None) to all of them.

        Only the bytes the device reported as written are returned, never what lay in the buffers before.
        Raises InvalidState while in flight or after `release`, and the `error` of a request that failed.
        """
        return b"".join(self._slices() if index is None else [self._slices()[index]])

    def views(self) -> list[memoryview]:
        """What the device wrote, in place: one view for each writable buffer. Raises as `output`."""
        views = self._slices()
        self._views += views
        return views

    def _slices(self) -> list[memoryview]:
        if not self.done:
            raise InvalidState("the request is still in flight")
        if self.error is not None:
            raise self.error
        if any(lease.released for lease in self.writable):
            raise InvalidState("the request was released")
        left = self.written
        views = []
        for lease in self.writable:
            views.append(lease.view[: min(left, lease.count)])
            left -= min(left, lease.count)
        return views

    def release(self) -> None:
        """Give all buffers back.

        Raises InvalidState while in flight, because the device may still write to them; and while an array that was
        made from one of the views exists.
        """
        if self.token >= 0 and not self.done:
            raise InvalidState("the request is still in flight: its buffers belong to the device")
        _let_go_of([*self._views, *(lease.view for lease in (*self.readable, *self.writable))])
        self._views.clear()
        for lease in (*self.readable, *self.writable):
            lease.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.done:
            self.release()

    def __repr__(self) -> str:
        state = f"done, {self.written} bytes" if self.done else "in flight" if self.token >= 0 else "new"
        state = "failed" if self.error is not None else state
        return f"<Request on queue {self.queue}: {state}>"


def _let_go_of(views: Sequence[memoryview]) -> None:
    """Release them all, before any of the bytes are handed out again. Raises InvalidState."""
    try:
        for view in views:
            view.release()
    except BufferError as error:
        raise InvalidState(f"something made from a view of these buffers still exists: {error}") from error
