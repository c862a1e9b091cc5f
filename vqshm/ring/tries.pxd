# C layout of the area of tries; the code is tries.py.

import cython

cimport vqshm.memory.atomic as atomic

cdef int _UNDONE, _ENTRIES, _GIVEN_UP
cdef unsigned long long _COUNTED


@cython.final
cdef class Tries:
    cdef readonly int size, limit, noted
    cdef readonly unsigned long long undone
    cdef int _giving
    cdef unsigned short[::1] _next
    cdef atomic.Region _window
    cdef atomic.Span _area

    @cython.locals(head=int)
    cpdef begin(self)
    @cython.locals(word="unsigned long long", giving=int, head=int, tries=int)
    cpdef resume(self, list taken)
    cpdef int again(self, int head) except -1
    cpdef bint is_exhausted(self, int head) except -1
    cpdef int give_up(self, int head) except -1
    cpdef int gave_up(self) except -1
    cpdef int forget(self, int head) except -1


@cython.final
cdef class Undone:
    cdef atomic.Region _window
    cdef atomic.Span _area

    cpdef int clear(self, int head) except -1
    cpdef bint says(self, int head) except -1
