"""Lent: a piece of memory that is handed out in place, and that knows whether anybody still looks at it.

Whoever lends memory must know when it is given back: a view that is still alive must not see the bytes of somebody
else. Every view, every slice of it and every array made from one holds the exporter; when the last of them is gone, so
is the exporter.

Two bodies with one contract: the compiled one (lent.pyx) counts exports itself; this one asks an exporter of ctypes
whether it still lives, because a Python class cannot export a buffer before Python 3.12.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqshm.memory.atomic import Region


class Lent:
    """`count` bytes at `offset` of a window. `view()` once; `in_use` while anything made from it exists."""

    __slots__ = ("_exporter", "_piece", "_readonly", "_view")

    def __init__(self, region: Region, offset: int, count: int, readonly: bool) -> None:  # noqa: FBT001 - as compiled
        self._piece: memoryview | None = region.view(offset, count)
        self._readonly = readonly
        self._exporter: weakref.ref[Any] | None = None
        self._view: weakref.ref[memoryview] | None = None

    def view(self) -> memoryview:
        """The bytes, in place. Called once, or again if an interrupted caller has lost the view."""
        piece = self._piece
        if piece is None or (self._view is not None and self._view() is not None):
            raise RuntimeError("a piece of memory is viewed once")
        view = piece
        if piece.nbytes:
            exporter = _array_type(piece.nbytes).from_buffer(piece)
            self._exporter = weakref.ref(exporter)
            view = memoryview(exporter).cast("B")
        view = view.toreadonly() if self._readonly else view[:]
        self._view = weakref.ref(view)
        return view

    @property
    def in_use(self) -> bool:
        """Whether a view, a slice or an array of these bytes still exists."""
        return self._exporter is not None and self._exporter() is not None

    @property
    def exports(self) -> int:
        """How many look at these bytes, as far as this body knows: 0 if nobody does."""
        return int(self.in_use)

    def close(self) -> None:
        """No view can be made any more, not even through what a view once was made from."""
        self._piece = None


def new_lent(region: Region, offset: int, count: int, readonly: bool) -> Lent:  # noqa: FBT001 - as compiled
    """As the constructor; compiled, it costs a tenth of that."""
    return Lent(region, offset, count, readonly)


@functools.lru_cache(maxsize=256)
def _array_type(count: int) -> Any:
    """A type of `count` bytes whose objects can be referred to weakly, which those of a bare ctypes array cannot."""
    return type(f"Bytes{count}", (ctypes.c_ubyte * count,), {})
