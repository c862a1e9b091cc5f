# C layout of what both halves of a split queue share; the code is split.py.

cimport vqshm.memory.atomic as atomic


cdef class Half:
    cdef readonly object memory
    cdef readonly int size
    cdef readonly bint event_idx
    cdef readonly object name
    cdef readonly object broken
    cdef int _mask, _used_event, _avail_event
    cdef atomic.Region _desc, _avail, _used
