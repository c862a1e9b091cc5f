"""Lent, compiled body; the contract and its reasons stand in the interpreted body, lent.py."""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.memoryview cimport PyMemoryView_FromObject

from vqshm.memory.atomic cimport Region


cdef class Lent:
    """A piece of a window that counts who looks at it; see the interpreted body."""

    def __init__(self, Region region, Py_ssize_t offset, Py_ssize_t count, bint readonly):
        if self._region is not None:
            raise RuntimeError("a piece of memory is lent once")
        self.open(region, offset, count, readonly)

    cdef int open(self, Region region, Py_ssize_t offset, Py_ssize_t count, bint readonly) except -1:
        if offset < 0 or count < 0 or offset > region.size or count > region.size - offset:
            region.view(offset, count)  # raises
        self._region = region
        self._base = region.base + offset
        self._count = count
        self._readonly = readonly or region.readonly
        return 0

    cpdef object view(self):
        if self._viewed:
            raise RuntimeError("a piece of memory is viewed once")
        self._viewed = True
        return PyMemoryView_FromObject(self)

    @property
    def in_use(self):
        return self.exports > 0

    cpdef close(self):
        self._closed = True

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if self._closed:
            raise BufferError("this piece of memory was given back")
        PyBuffer_FillInfo(buffer, self, self._base, self._count, self._readonly, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer* buffer):
        self.exports -= 1


cpdef Lent new_lent(Region region, Py_ssize_t offset, Py_ssize_t count, bint readonly):
    cdef Lent lent = Lent.__new__(Lent)
    lent.open(region, offset, count, readonly)
    return lent
