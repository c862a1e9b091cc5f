# C layout of the holdings; the code is holdings.py.

import cython

cimport vqshm.memory.atomic as atomic
from vqshm.memory.arena cimport Arena
from vqshm.memory.lent cimport Lent
from vqshm.ring.split_driver cimport DriverQueue

cdef int _TAKING, _NONE, _WAITING, _FORGOTTEN, _LOST


cdef class Holdings(DriverQueue):
    cdef readonly Arena arena
    cdef readonly int reserved, calls
    cdef public long long messages, bytes_out
    cdef long long[::1] _ticket, _state
    cdef list _lents, _orphans
    cdef tuple _after

    cdef int _drop(self, long long ticket) except -1
    cdef bint _is_open(self, long long ticket, Lent lent) except -1
    cdef int _cancel_reserved(self, long long ticket) except -1
    @cython.locals(ticket="long long")
    cpdef collect(self)
    cdef int _forget_call(self, long long ticket) except -1
    cdef int _end_call(self, long long ticket) except -1
    cdef int _note(self, Py_ssize_t count) except -1
