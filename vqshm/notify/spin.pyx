"""Spin, compiled body; the contract and its reasons stand in the interpreted body, spin.py."""

import os

from vqshm.memory.atomic cimport Region

cdef extern from "spin.h" nogil:
    bint vq_glance_u16(const unsigned char*, unsigned short) noexcept
    bint vq_until_changed_u16(const unsigned char*, unsigned short, long long) noexcept

SPIN_NANOSECONDS = 50_000
LEAST_SHARE = 16
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
        return until_changed(region, offset, old, self.budget)

    cpdef slept(self, long long nanoseconds):
        if nanoseconds < 2 * self.limit:
            self.budget = self.limit
        else:
            self.budget = max(self.budget // 2, self.limit // LEAST_SHARE)
