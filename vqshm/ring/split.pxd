# C layout of what both halves of a split queue share; the code is split.py.

import cython

cimport vqshm.memory.atomic as atomic


cdef class Half:
    cdef readonly object memory
    cdef readonly int size
    cdef readonly bint event_idx
    cdef readonly object name
    cdef readonly object broken
    cdef unsigned int _mask
    cdef int _used_event, _avail_event
    cdef atomic.Span _desc, _avail, _used
    cdef tuple _windows

    @cython.final
    cdef int _refuse(self) except -1
