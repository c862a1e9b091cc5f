# C layout of a call; the code is call.py.

import cython

cimport vqshm.memory.atomic as atomic
from vqshm.lane.outlet cimport Outlet


@cython.final
cdef class Call:
    cdef Outlet _outlet
    cdef bytes _reply
    cdef Py_ssize_t _offset
    cdef long long _ticket
    cdef int _epoch

    @cython.locals(outlet=Outlet, written=Py_ssize_t, reply=bytes)
    cpdef bytes answer(self, object timeout=*)
    @cython.locals(outlet=Outlet)
    cpdef forget(self)
