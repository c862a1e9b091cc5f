"""The ordering seam: every ordered access to shared memory in vqshm goes through this module, and nothing else does.

It has two bodies with one contract. This one is interpreted, over `memoryview`, for teaching and for machines without a
compiler. The other (atomic.pyx, atomic.pxd, atomic.h) is compiled, over raw memory with the C11 builtins, and is
inlined into the rings.

    load_uN   acquire: what the other side stored before its matching store is visible after this load
    store_uN  release: whatever this side stored before is visible to whoever sees this store
    get_uN    no order; every byte is fetched exactly once, so the returned copy can be checked and then trusted
    put_uN    no order
    fence     sequentially consistent: stores before it are visible to all before any load after it is performed

N is 16, 32 or 64; values are little-endian; `load` and `store` want offsets that are multiples of N/8.

Why this body is right on x86-64, and only there: an aligned memoryview item moves as one machine word (never use
`struct.pack_into` on a shared word: it clears the bytes first), and on x86-TSO every load acquires and every store
releases. Only a store followed by a load of another word needs a fence. On other processors `ORDERED` is False and
processes must not share rings with this body.
"""

from __future__ import annotations

import platform
import sys
from typing import Any, Final, Protocol

from vqshm.errors import GuestMemory, ReadOnlyMemory

if sys.byteorder != "little":
    raise ImportError("vqshm shares little-endian memory and runs on little-endian machines only")

INTERRUPTIBLE: Final = True  # an exception may strike between any two steps: what needs that costs nothing compiled
ORDERED: Final = platform.machine() in {"x86_64", "AMD64", "i686"}

_SEQ_CST = 5  # memory_order_seq_cst of the C ABI


def _find_fence() -> tuple[Any, str]:
    """A callable that is a full fence, and its name for `vqshm doctor`."""
    import ctypes  # noqa: PLC0415 - only the interpreted body pays for it

    try:
        thread_fence = ctypes.CDLL("libatomic.so.1").atomic_thread_fence
    except (OSError, AttributeError):
        import _thread  # noqa: PLC0415

        # Not the mutual exclusion is wanted here, which would mean nothing between processes, but the LOCK-prefixed
        # instruction inside, which on x86 drains the store buffer (and only on x86: see ORDERED).
        lock = _thread.allocate_lock()

        def locked_instruction() -> None:
            with lock:
                pass

        return locked_instruction, "locked instruction (x86 only; libatomic not found)"
    thread_fence.argtypes = [ctypes.c_int]
    thread_fence.restype = None
    return lambda: thread_fence(_SEQ_CST), "libatomic atomic_thread_fence(seq_cst)"


fence, FENCE = _find_fence()


class Beyond(Protocol):
    """The slow road: serves accesses that do not lie in the window, or raises. Widths are bytes: 2, 4 or 8."""

    def load(self, offset: int, width: int) -> int:
        """Ordered fetch."""

    def store(self, offset: int, width: int, value: int) -> None:
        """Ordered store."""

    def get(self, offset: int, width: int) -> int:
        """Fetch once."""

    def put(self, offset: int, width: int, value: int) -> None:
        """Store."""


class Region:
    """A window of `size` bytes over any buffer, from `offset` of it; it keeps the buffer alive and exported.

    Every access checks its bounds here, once. What does not lie in the window goes to `beyond` if there is one, else
    raises GuestMemory. A read-only buffer can be read; writing raises ReadOnlyMemory.
    """

    __slots__ = ("_bytes", "_u16", "_u32", "_u64", "_writable_size", "beyond", "readonly", "size")

    def __init__(self, buffer: Any, offset: int = 0, size: int | None = None, beyond: Beyond | None = None) -> None:
        whole = memoryview(buffer).cast("B")
        length = whole.nbytes - offset if size is None else size
        if offset < 0 or length < 0 or offset + length > whole.nbytes:
            message = f"window [{offset}, {offset}+{length}) does not lie in a buffer of {whole.nbytes} bytes"
            raise ValueError(message)
        self.size = length
        self.readonly = whole.readonly
        self._writable_size = 0 if whole.readonly else length
        self.beyond = beyond
        self._bytes = whole[offset : offset + length]
        self._u16 = self._bytes[: length & -2].cast("H")
        self._u32 = self._bytes[: length & -4].cast("I")
        self._u64 = self._bytes[: length & -8].cast("Q")

    @property
    def alignment(self) -> int:
        """The power of two to which the window's first byte is aligned in this process, as far as known, in bytes."""
        return 4096  # memoryview items need no alignment

    def read(self, offset: int, count: int) -> bytes:
        """A copy of `count` bytes. Raises GuestMemory."""
        return copy(self, offset, count)

    def write(self, offset: int, data: Any) -> None:
        """Store all bytes of `data` (any contiguous buffer). Raises GuestMemory, ReadOnlyMemory."""
        fill(self, offset, data, count_of(data))

    def view(self, offset: int, count: int) -> memoryview:
        """`count` bytes in place. Raises GuestMemory."""
        if offset < 0 or count < 0 or offset + count > self.size:
            raise outside(self, offset, count)
        return self._bytes[offset : offset + count]

    def window(self, offset: int, count: int) -> Region:
        """A narrower window of the same memory. Raises GuestMemory."""
        return Region(self.view(offset, count))


Span = Region  # compiled, the bare addresses of one: whoever keeps a Span keeps the Region, too


def span_of(region: Region) -> Span:
    """The form in which the functions below, called from compiled modules, take a window."""
    return region


def region_of(span: Span) -> Region:
    """The window of a span."""
    return span


def count_of(data: Any) -> int:
    """Bytes of any contiguous buffer. Raises TypeError for what is none, ValueError where it is not contiguous."""
    if type(data) is bytes:
        return len(data)
    view = memoryview(data)
    if not view.c_contiguous:
        raise ValueError("the bytes must lie in one contiguous piece: this buffer does not")
    return view.nbytes


def fill(region: Region, offset: int, data: Any, count: int) -> None:
    """Store all bytes of `data`, which are `count`. Raises GuestMemory, ReadOnlyMemory, ValueError."""
    if region.readonly:
        raise read_only()
    if offset < 0 or count < 0 or offset + count > region.size:
        raise outside(region, offset, count)
    if type(data) is not bytes:
        view = memoryview(data)
        data = view.cast("B") if view.nbytes else b""  # with a 0 in its shape it cannot be cast
    if len(data) != count:
        raise ValueError(f"a buffer of {count} bytes has {len(data)} now: it must not change while it is copied")
    region._bytes[offset : offset + count] = data


def copy(region: Region, offset: int, count: int) -> bytes:
    """A copy of `count` bytes. Raises GuestMemory."""
    if offset < 0 or count < 0 or offset + count > region.size:
        raise outside(region, offset, count)
    return bytes(region._bytes[offset : offset + count])


def outside(region: Region, offset: int, count: int) -> GuestMemory:
    """The error for an access that leaves the window."""
    return GuestMemory(f"{count} bytes at offset {offset} do not lie in a window of {region.size} bytes")


def read_only() -> ReadOnlyMemory:
    """The error for a store into a window that may only be read."""
    return ReadOnlyMemory("this memory is mapped to be looked at: it cannot be written to")


def get_u16(region: Region, offset: int) -> int:
    """16 bits."""
    if 0 <= offset <= region.size - 2:
        if offset & 1:
            return int.from_bytes(region._bytes[offset : offset + 2], "little")
        return region._u16[offset >> 1]
    return _beyond(region, offset, 2).get(offset, 2)


def get_u32(region: Region, offset: int) -> int:
    """32 bits."""
    if 0 <= offset <= region.size - 4:
        if offset & 3:
            return int.from_bytes(region._bytes[offset : offset + 4], "little")
        return region._u32[offset >> 2]
    return _beyond(region, offset, 4).get(offset, 4)


def get_u64(region: Region, offset: int) -> int:
    """64 bits."""
    if 0 <= offset <= region.size - 8:
        if offset & 7:
            return int.from_bytes(region._bytes[offset : offset + 8], "little")
        return region._u64[offset >> 3]
    return _beyond(region, offset, 8).get(offset, 8)


def put_u16(region: Region, offset: int, value: int) -> None:
    """16 bits."""
    if not 0 <= offset <= region._writable_size - 2:
        _beyond_put(region, offset, 2).put(offset, 2, value)
    elif offset & 1:
        region._bytes[offset : offset + 2] = value.to_bytes(2, "little")
    else:
        region._u16[offset >> 1] = value


def put_u32(region: Region, offset: int, value: int) -> None:
    """32 bits."""
    if not 0 <= offset <= region._writable_size - 4:
        _beyond_put(region, offset, 4).put(offset, 4, value)
    elif offset & 3:
        region._bytes[offset : offset + 4] = value.to_bytes(4, "little")
    else:
        region._u32[offset >> 2] = value


def put_u64(region: Region, offset: int, value: int) -> None:
    """64 bits."""
    if not 0 <= offset <= region._writable_size - 8:
        _beyond_put(region, offset, 8).put(offset, 8, value)
    elif offset & 7:
        region._bytes[offset : offset + 8] = value.to_bytes(8, "little")
    else:
        region._u64[offset >> 3] = value


def load_u16(region: Region, offset: int) -> int:
    """16 bits, acquire."""
    if 0 <= offset <= region.size - 2:
        return region._u16[offset >> 1]
    return _beyond(region, offset, 2).load(offset, 2)


def load_u32(region: Region, offset: int) -> int:
    """32 bits, acquire."""
    if 0 <= offset <= region.size - 4:
        return region._u32[offset >> 2]
    return _beyond(region, offset, 4).load(offset, 4)


def load_u64(region: Region, offset: int) -> int:
    """64 bits, acquire."""
    if 0 <= offset <= region.size - 8:
        return region._u64[offset >> 3]
    return _beyond(region, offset, 8).load(offset, 8)


def store_u16(region: Region, offset: int, value: int) -> None:
    """16 bits, release."""
    if 0 <= offset <= region._writable_size - 2:
        region._u16[offset >> 1] = value
    else:
        _beyond_put(region, offset, 2).store(offset, 2, value)


def store_u32(region: Region, offset: int, value: int) -> None:
    """32 bits, release."""
    if 0 <= offset <= region._writable_size - 4:
        region._u32[offset >> 2] = value
    else:
        _beyond_put(region, offset, 4).store(offset, 4, value)


def store_u64(region: Region, offset: int, value: int) -> None:
    """64 bits, release."""
    if 0 <= offset <= region._writable_size - 8:
        region._u64[offset >> 3] = value
    else:
        _beyond_put(region, offset, 8).store(offset, 8, value)


def _beyond(region: Region, offset: int, width: int) -> Beyond:
    if region.beyond is None:
        raise outside(region, offset, width)
    return region.beyond


def _beyond_put(region: Region, offset: int, width: int) -> Beyond:
    if region.readonly:
        raise read_only()
    return _beyond(region, offset, width)
