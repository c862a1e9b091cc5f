"""`QueueSync`: a queue that several threads of one process share behind a lock, the seed's second queue type.

The lock is private to the process and protects only the positions of this half. Between processes nothing is ever
locked.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vqshm.ring.queue import Queue

if TYPE_CHECKING:
    from vqshm.ring.state import QueueState


class QueueSync:
    """The methods of `Queue`, each under a lock; `with queue.lock() as inner:` holds it over several calls.

    An iteration over the available ring takes many steps, so it exists only inside `lock()`.
    """

    def __init__(self, max_size: int, *, strict: bool = False, name: str = "queue") -> None:
        self._queue = Queue(max_size, strict=strict, name=name)
        self._lock = threading.RLock()

    @classmethod
    def from_state(cls, state: QueueState, *, strict: bool = False, name: str = "queue") -> QueueSync:
        """As `Queue.from_state`."""
        self = cls.__new__(cls)
        self._queue = Queue.from_state(state, strict=strict, name=name)
        self._lock = threading.RLock()
        return self

    @contextmanager
    def lock(self) -> Iterator[Queue]:
        """The queue itself, for as long as the block holds the lock."""
        with self._lock:
            yield self._queue

    def iter(self, _memory: Any) -> None:
        """Not offered: another thread could move the position between two steps. Raises TypeError."""
        raise TypeError("iterate inside the lock: with queue.lock() as inner: for chain in inner.iter(memory): …")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # also what copy and pickle look for, before there is a lock
            raise AttributeError(f"QueueSync has no attribute {name!r}")
        with self._lock:
            value = getattr(self._queue, name)
        if not callable(value):
            return value

        def locked(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return value(*args, **kwargs)

        return locked
