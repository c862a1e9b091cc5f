"""Spin, compiled body; the contract and its reasons stand in the interpreted body, spin.py."""

import os

from vqshm.memory.atomic cimport Region

cdef extern from "sched.h" nogil:
    int sched_yield() noexcept

cdef extern from "spin.h" nogil:
    bint vq_changed_u16(const unsigned char*, unsigned short) noexcept
    bint vq_glance_u16(const unsigned char*, unsigned short) noexcept
    long long vq_now() noexcept
    long long vq_tick() noexcept
    bint vq_until_changed_u16(const unsigned char*, unsigned short, long long) noexcept

SPIN_NANOSECONDS = 50_000
LEAST_SHARE = 16
cdef int _LEAST_SHARE = LEAST_SHARE
cdef long long LONGEST = 3_600_000_000_000  # an hour, so that no sum overflows


cpdef bint until_changed(Region region, Py_ssize_t offset, int old, long long nanoseconds) except -1:
    cdef bint changed
    if not 0 <= offset <= region.size - 2:
        region.view(offset, 2)  # raises
    cdef const unsigned char* word = region.base + offset
    # A glance first: the answer of a peer that is awake comes within less time than handing the GIL over costs.
    if vq_glance_u16(word, <unsigned short>old):
        return True
    if nanoseconds <= 0:
        return False
    nanoseconds = min(nanoseconds, LONGEST)
    with nogil:
        changed = vq_until_changed_u16(word, <unsigned short>old, nanoseconds)
    return changed


cpdef long long now() except -1:
    return vq_now()


cpdef long long tick() except -1:
    return vq_tick()


cdef class Pace:
    """How long one waiting side looks before it sleeps; see the interpreted body."""

    def __init__(self, limit=None):
        if limit is None:
            limit = SPIN_NANOSECONDS if len(os.sched_getaffinity(0)) > 1 else 0
        if limit < 0:
            raise ValueError(f"cannot look for {limit} nanoseconds")
        self.limit = limit
        self.budget = limit

    cpdef bint look(self, Region region, Py_ssize_t offset, int old) except -1:
        if until_changed(region, offset, old, self.budget):
            return True
        with nogil:
            sched_yield()
        if not vq_changed_u16(region.base + offset, <unsigned short>old):
            return False
        self._shorten()
        return True

    cpdef slept(self, long long nanoseconds):
        if nanoseconds < 2 * self.limit:
            self.budget = self.limit
        else:
            self._shorten()

    cdef void _shorten(self) noexcept:
        self.budget = max(self.budget >> 1, self.limit // _LEAST_SHARE)
