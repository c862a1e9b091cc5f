# C layout of the in-flight area; the code is inflight.py.

import cython

cimport vqshm.memory.atomic as atomic
from vqshm.ring.tries cimport Tries

cdef int _FEATURES, _VERSION, _DESC_NUM, _LAST_BATCH_HEAD, _USED_IDX, _ENTRIES, _NEXT, _COUNTER
cdef unsigned long long _MOST


@cython.final
cdef class Inflight:
    cdef readonly int size
    cdef public bint settling
    cdef readonly Tries tries
    cdef int _count, _last
    cdef unsigned long long _counter
    cdef unsigned short[::1] _batch
    cdef atomic.Region _window
    cdef atomic.Span _area

    @cython.locals(index=int)
    cpdef begin(self)
    @cython.locals(at=int)
    cpdef int take(self, int head) except -1
    cpdef int untake(self, int head) except -1
    cpdef int give(self, int head) except -1
    @cython.locals(index=int)
    cpdef int settle(self, int used_idx) except -1
