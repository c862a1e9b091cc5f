"""Memory models: what a side may see of the other's stores, and when. Immutable values, which can be compared.

Each has: `start`; `store`, `fence`, `ring`: the value after it, None while it must wait; `loads`: every (bytes, value
after) that a load may yield; `own`: the bytes of a load that only this side's doings decide, else None; `hear`: a bell
that was rung is taken; `moves`: what happens by itself; `deaths`: what a sudden death may leave; `image`: the memory.

`moving` are the kinds of steps that others can tell the moment of; the rest is done as soon as a side comes to it.
Every word has one writer, as in a virtqueue; so a side that reads a word of its own knows what it reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple


class Tso:
    """x86-TSO: a side's stores go through a buffer, first in, first out; loads look there first, a fence waits for it.

    A doorbell goes the same way, as the kernel's counter is memory, too.
    """

    name = "tso"
    moving = frozenset[str]()  # what the others notice; a store is not: it goes into the buffer

    class Value(NamedTuple):
        base: int
        memory: bytes
        buffers: tuple[tuple[tuple[Any, bytes], ...], ...]  # per side: (address or bell, bytes)
        bells: frozenset[str]

    def start(self, base: int, image: bytes, sides: int) -> Value:
        return self.Value(base, bytes(image), ((),) * sides, frozenset())

    def store(self, value: Value, side: int, address: int, data: bytes, release: bool) -> Value | None:
        return self._push(value, side, (address, data))

    def ring(self, value: Value, side: int, bell: str) -> Value | None:
        return self._push(value, side, (bell, b""))

    def _push(self, value: Value, side: int, entry: tuple[Any, bytes]) -> Value:
        return self._buffered(value, side, (*value.buffers[side], entry))

    def fence(self, value: Value, side: int) -> Value | None:
        return None if value.buffers[side] else value

    def own(self, value: Value, side: int, address: int, count: int) -> bytes | None:
        if any(self._overlaps(entry, address, count) for entry in value.buffers[side]):
            return self._seen(value, side, address, count)
        return None

    def loads(self, value: Value, side: int, address: int, count: int, acquire: bool) -> list[Any]:
        return [(self._seen(value, side, address, count), value)]

    def hear(self, value: Value, side: int, bell: str) -> Value | None:
        return value._replace(bells=value.bells - {bell}) if bell in value.bells else None

    def moves(self, value: Value, side: int) -> Iterator[tuple[str, Value]]:
        if value.buffers[side]:
            yield self._drained(value, side)

    def deaths(self, value: Value, side: int) -> Iterator[tuple[str, Value]]:
        """Of the stores that nobody saw yet, a sudden death leaves the oldest, any number of them."""
        while True:
            yield "is killed", self._buffered(value, side, ())
            if not value.buffers[side]:
                return
            value = self._drained(value, side)[1]

    def image(self, value: Value) -> bytes:
        return value.memory

    def _drained(self, value: Value, side: int) -> tuple[str, Value]:
        (where, data), *rest = value.buffers[side]
        if isinstance(where, str):
            what, after = f"rings {where}", value._replace(bells=value.bells | {where})
        else:
            at = where - value.base
            what = f"its store of {data.hex()} to +{at:#x} becomes visible"
            after = value._replace(memory=value.memory[:at] + data + value.memory[at + len(data) :])
        return what, self._buffered(after, side, tuple(rest))

    def _buffered(self, value: Value, side: int, buffer: tuple[Any, ...]) -> Value:
        return value._replace(buffers=(*value.buffers[:side], buffer, *value.buffers[side + 1 :]))

    @staticmethod
    def _overlaps(entry: tuple[Any, bytes], address: int, count: int) -> bool:
        where, data = entry
        return not isinstance(where, str) and where < address + count and address < where + len(data)

    def _seen(self, value: Value, side: int, address: int, count: int) -> bytes:
        at = address - value.base
        seen = bytearray(value.memory[at : at + count])
        for entry in value.buffers[side]:
            if self._overlaps(entry, address, count):
                where, data = entry
                for i, byte in enumerate(data, where - address):
                    if 0 <= i < count:
                        seen[i] = byte
        return bytes(seen)


class Sc(Tso):
    """Sequential consistency: every store is visible at once."""

    name = "sc"
    moving = frozenset({"store", "ring"})

    def _push(self, value: Tso.Value, side: int, entry: tuple[Any, bytes]) -> Tso.Value:
        return self._drained(super()._push(value, side, entry), side)[1]


class C11:
    """C11 without consume and without load buffering: views, as in the operational models of release and acquire.

    Every cell keeps the stores that somebody may still read, numbered. A side's view is, per cell, the oldest store it
    may still read. A release store hands on the storing side's view, an acquire load takes it; a plain store hands on
    the view of the last fence, a plain load takes it at the next fence. A fence exchanges views with all fences before.
    A cell has one writer (which is checked), so that its stores have one order.
    """

    name = "c11"
    moving = frozenset({"fence"})  # the order of all fences matters; a store need not be seen at once

    class Value(NamedTuple):
        cells: tuple[tuple[int, tuple[tuple[bytes, View], ...]], ...]  # per cell: number of the first, (bytes, view) …
        now: tuple[View, ...]  # per side: its view
        later: tuple[View, ...]  # per side: its view once it passes a fence
        fenced: tuple[View, ...]  # per side: its view at its last fence
        fences: View  # all fences so far

    def __init__(self) -> None:
        self._index: dict[Any, int] = {}  # address or bell -> cell
        self._extent: dict[int, int] = {}  # address -> bytes
        self._writer: dict[int, int] = {}
        self._first: dict[int, bytes] = {}
        self._base = 0
        self._image = b""

    def start(self, base: int, image: bytes, sides: int) -> Value:
        self._base, self._image = base, image
        return self.Value((), ((),) * sides, ((),) * sides, ((),) * sides, ())

    def store(self, value: Value, side: int, address: int, data: bytes, release: bool) -> Value:
        cell = self._cell(address, len(data))
        value = self._grown(value, cell)
        if self._writer.setdefault(cell, side) != side:
            raise AssertionError(f"two sides write to address {address:#x}")
        first, stores = value.cells[cell]
        data += stores[-1][0][len(data) :]
        view = _set(value.now[side], cell, first + len(stores))
        handed = view if release else _join(value.fenced[side], _set((), cell, first + len(stores)))
        after = self._with_view(value, side, view)
        cells = _set_cell(after.cells, cell, (first, (*stores, (data, handed))))
        return self._trimmed(after._replace(cells=cells), cell)

    def ring(self, value: Value, side: int, bell: str) -> Value:
        """The kernel's counter: read, modified and written in one step, with release and acquire."""
        cell = self._cell(bell, 0)
        value = self._grown(value, cell)
        first, stores = value.cells[cell]
        view = _join(_set(value.now[side], cell, first + len(stores)), stores[-1][1])
        after = self._with_view(value, side, view)
        return after._replace(cells=_set_cell(after.cells, cell, (first + len(stores), ((b"\1", view),))))

    def hear(self, value: Value, side: int, bell: str) -> Value | None:
        cell = self._cell(bell, 0)
        value = self._grown(value, cell)
        first, ((rung, view),) = value.cells[cell]
        if not rung:
            return None
        view = _join(value.now[side], view)
        after = self._with_view(value, side, view)
        return after._replace(cells=_set_cell(after.cells, cell, (first, ((b"", view),))))

    def fence(self, value: Value, side: int) -> Value:
        view = _join(_join(value.now[side], value.later[side]), value.fences)
        after = self._with_view(value, side, view)
        return after._replace(fenced=_at(after.fenced, side, view), fences=view)

    def own(self, value: Value, side: int, address: int, count: int) -> bytes | None:
        cell = self._cell(address, count)
        if self._writer.get(cell) == side and cell < len(value.cells):
            return value.cells[cell][1][-1][0][:count]
        return None

    def loads(self, value: Value, side: int, address: int, count: int, acquire: bool) -> list[tuple[bytes, Value]]:
        cell = self._cell(address, count)
        value = self._grown(value, cell)
        first, stores = value.cells[cell]
        oldest = _get(value.now[side], cell)
        loads = []
        for number, (data, handed) in enumerate(stores, first):
            if number >= oldest:
                view = _set(value.now[side], cell, number)
                if acquire:
                    after = self._with_view(value, side, _join(view, handed))
                else:
                    after = value._replace(
                        now=_at(value.now, side, view),
                        later=_at(value.later, side, _join(_join(value.later[side], view), handed)),
                    )
                loads.append((data[:count], self._trimmed(after, cell)))
        return loads

    def moves(self, value: Value, side: int) -> tuple[()]:
        return ()

    def deaths(self, value: Value, side: int) -> tuple[()]:
        raise NotImplementedError("a killed side's stores are ordered by x86 only")

    def image(self, value: Value) -> bytes:
        image = bytearray(self._image)
        for where, cell in self._index.items():
            if not isinstance(where, str) and cell < len(value.cells):
                data = value.cells[cell][1][-1][0]
                image[where - self._base : where - self._base + len(data)] = data
        return bytes(image)

    def _cell(self, where: Any, count: int) -> int:
        cell = self._index.get(where)
        if cell is None or count > self._extent.get(where, count):
            if not isinstance(where, str):
                for other, extent in self._extent.items():
                    if other != where and other < where + count and where < other + extent:
                        raise AssertionError(f"{where:#x} and {other:#x} overlap")
                self._extent[where] = count
            if cell is None:
                cell = self._index[where] = len(self._index)
            at = 0 if isinstance(where, str) else where - self._base
            self._first[cell] = b"" if isinstance(where, str) else self._image[at : at + count]
        return cell

    def _grown(self, value: Value, cell: int) -> Value:
        cells = value.cells
        while len(cells) <= cell:
            cells += ((0, ((self._first[len(cells)], ()),)),)
        return value._replace(cells=cells)

    def _with_view(self, value: Value, side: int, view: View) -> Value:
        return value._replace(
            now=_at(value.now, side, view), later=_at(value.later, side, _join(value.later[side], view))
        )

    def _trimmed(self, value: Value, cell: int) -> Value:
        """Without the stores of a cell that nobody can read any more."""
        writer = self._writer.get(cell)
        oldest = min((_get(view, cell) for side, view in enumerate(value.now) if side != writer), default=0)
        first, stores = value.cells[cell]
        if oldest <= first:
            return value
        return value._replace(cells=_set_cell(value.cells, cell, (oldest, stores[oldest - first :])))


View = tuple[int, ...]  # per cell: the oldest store that may be read; cells that are missing: 0


def _get(view: View, cell: int) -> int:
    return view[cell] if cell < len(view) else 0


def _set(view: View, cell: int, number: int) -> View:
    if len(view) <= cell:
        view += (0,) * (cell + 1 - len(view))
    return (*view[:cell], number, *view[cell + 1 :])


def _join(one: View, two: View) -> View:
    if len(one) < len(two):
        one, two = two, one
    return tuple(map(max, one, two)) + one[len(two) :]


def _at(views: tuple[View, ...], side: int, view: View) -> tuple[View, ...]:
    return (*views[:side], view, *views[side + 1 :])


def _set_cell(cells: Any, cell: int, content: Any) -> Any:
    return (*cells[:cell], content, *cells[cell + 1 :])


MODELS = {model.name: model for model in (Sc, Tso, C11)}
