"""The ordering seam, compiled body; the contract and its reasons stand in the interpreted body, atomic.py."""

import sys

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.string cimport memcpy

from vqshm.errors import GuestMemory, ReadOnlyMemory

if sys.byteorder != "little":
    raise ImportError("vqshm shares little-endian memory and runs on little-endian machines only")

ORDERED = True
FENCE = "C11 atomic_thread_fence(seq_cst)"


# The cycle collector must neither clear a Region nor whom its buffer was taken from: the buffer could not be given back
# then, and the memory under `base` never be unmapped. So it does not see that reference, and breaks a cycle elsewhere.
@cython.no_gc_clear
cdef class Region:
    """A window of memory, bounds-checked at every access; see the interpreted body."""

    def __init__(self, buffer, offset=0, size=None, beyond=None):
        if self._held:
            raise RuntimeError("a Region is made once")
        try:
            PyObject_GetBuffer(buffer, &self._hold.buffer, PyBUF_SIMPLE | PyBUF_WRITABLE)
        except (BufferError, TypeError, ValueError):
            PyObject_GetBuffer(buffer, &self._hold.buffer, PyBUF_SIMPLE)
        self._held = True
        self._keep = buffer
        self.readonly = self._hold.buffer.readonly
        cdef Py_ssize_t total = self._hold.buffer.len
        cdef Py_ssize_t start = offset
        cdef Py_ssize_t length = -1
        if 0 <= start <= total:  # else the difference could overflow
            length = total - start if size is None else size
        if length < 0 or length > total - start:
            raise ValueError(f"window [{offset}, {offset}+{length}) does not lie in a buffer of {total} bytes")
        self.base = <unsigned char*>self._hold.buffer.buf + start
        self.size = length
        self.span.region = <PyObject*>self
        if not self.readonly:
            self.span.base = self.base
            self.span.size = length
            self.span.end16 = max(0, length - 1)
            self.span.end32 = max(0, length - 3)
            self.span.end64 = max(0, length - 7)
        self.beyond = beyond

    def __dealloc__(self):
        if self._held:
            PyBuffer_Release(&self._hold.buffer)

    @property
    def alignment(self):
        cdef size_t address = <size_t>self.base
        return 16 if address == 0 else min(address & -address, 4096)

    def read(self, Py_ssize_t offset, Py_ssize_t count):
        return copy(self.span, offset, count)

    def write(self, Py_ssize_t offset, data):
        fill(self.span, offset, data, count_of(data))

    def view(self, Py_ssize_t offset, Py_ssize_t count):
        if offset < 0 or count < 0 or offset > self.size or count > self.size - offset:
            raise outside(self, offset, count)
        cdef Py_ssize_t start = self.base - <unsigned char*>self._hold.buffer.buf + offset
        return memoryview(self._keep).cast("B")[start : start + count]

    def window(self, Py_ssize_t offset, Py_ssize_t count):
        return Region(self.view(offset, count))


cdef Py_ssize_t slow_count(object data) except -1:
    cdef Py_buffer source
    cdef Py_ssize_t count
    try:
        PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
    except BufferError as error:
        raise scattered(error) from None
    count = source.len
    PyBuffer_Release(&source)
    return count


cdef int slow_fill(PyObject* window, Py_ssize_t offset, object data, Py_ssize_t count) except -1:
    cdef Py_buffer source
    cdef Region region = window_of(window)
    if region.readonly:
        raise read_only()
    if offset < 0 or count < 0 or offset > region.size or count > region.size - offset:
        raise outside(region, offset, count)
    PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
    try:
        if source.len != count:
            raise resized(source.len, count)
        memcpy(region.base + offset, source.buf, count)
    finally:
        PyBuffer_Release(&source)
    return 0


cdef bytes slow_copy(PyObject* window, Py_ssize_t offset, Py_ssize_t count):
    cdef Region region = window_of(window)
    if count < 0 or offset < 0 or offset > region.size - count:
        raise outside(region, offset, count)
    return PyBytes_FromStringAndSize(<char*>region.base + offset, count)


def scattered(error):
    return ValueError(f"the bytes must lie in one contiguous piece: {error}")


def resized(now, count):
    return ValueError(f"a buffer of {count} bytes has {now} now: it must not change while it is copied")


def read_only():
    return ReadOnlyMemory("this memory is mapped to be looked at: it cannot be written to")


def outside(region, offset, count):
    return GuestMemory(f"{count} bytes at offset {offset} do not lie in a window of {region.size} bytes")


cdef Region window_of(PyObject* window):
    if window is NULL:
        raise GuestMemory("there is no window here")
    return <Region>window


cdef unsigned long long slow_get(PyObject* window, Py_ssize_t offset, int width, bint ordered) except? 0xFFFFFFFFFFFFFFFF:
    cdef Region region = window_of(window)
    if 0 <= offset <= region.size - width:  # it is read-only
        if width == 2:
            return vq_load_u16(region.base + offset) if ordered else vq_get_u16(region.base + offset)
        if width == 4:
            return vq_load_u32(region.base + offset) if ordered else vq_get_u32(region.base + offset)
        return vq_load_u64(region.base + offset) if ordered else vq_get_u64(region.base + offset)
    if region.beyond is None:
        raise outside(region, offset, width)
    return region.beyond.load(offset, width) if ordered else region.beyond.get(offset, width)


cdef int slow_put(PyObject* window, Py_ssize_t offset, int width, unsigned long long value, bint ordered) except -1:
    cdef Region region = window_of(window)
    if region.readonly:
        raise read_only()
    if region.beyond is None:
        raise outside(region, offset, width)
    if ordered:
        region.beyond.store(offset, width, value)
    else:
        region.beyond.put(offset, width, value)
    return 0


# The same operations for interpreted callers. The C names above are taken by the inlined forms, hence the table.


def _load_u16(Region region, Py_ssize_t offset):
    return load_u16(region.span, offset)


def _load_u32(Region region, Py_ssize_t offset):
    return load_u32(region.span, offset)


def _load_u64(Region region, Py_ssize_t offset):
    return load_u64(region.span, offset)


def _store_u16(Region region, Py_ssize_t offset, unsigned short value):
    store_u16(region.span, offset, value)


def _store_u32(Region region, Py_ssize_t offset, unsigned int value):
    store_u32(region.span, offset, value)


def _store_u64(Region region, Py_ssize_t offset, unsigned long long value):
    store_u64(region.span, offset, value)


def _get_u16(Region region, Py_ssize_t offset):
    return get_u16(region.span, offset)


def _get_u32(Region region, Py_ssize_t offset):
    return get_u32(region.span, offset)


def _get_u64(Region region, Py_ssize_t offset):
    return get_u64(region.span, offset)


def _put_u16(Region region, Py_ssize_t offset, unsigned short value):
    put_u16(region.span, offset, value)


def _put_u32(Region region, Py_ssize_t offset, unsigned int value):
    put_u32(region.span, offset, value)


def _put_u64(Region region, Py_ssize_t offset, unsigned long long value):
    put_u64(region.span, offset, value)


def _fence():
    vq_fence()


def _span_of(Region region):
    return region


def _count_of(data):
    return count_of(data)


def _fill(Region region, Py_ssize_t offset, data, Py_ssize_t count):
    fill(region.span, offset, data, count)


def _copy(Region region, Py_ssize_t offset, Py_ssize_t count):
    return copy(region.span, offset, count)


globals().update(
    fence=_fence, span_of=_span_of, region_of=_span_of, count_of=_count_of, fill=_fill, copy=_copy,
    load_u16=_load_u16, load_u32=_load_u32, load_u64=_load_u64,
    store_u16=_store_u16, store_u32=_store_u32, store_u64=_store_u64,
    get_u16=_get_u16, get_u32=_get_u32, get_u64=_get_u64,
    put_u16=_put_u16, put_u32=_put_u32, put_u64=_put_u64,
)
