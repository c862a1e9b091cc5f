# C layout of the resuming inlet; the code is resuming.py.

import cython

cimport vqshm.memory.atomic as atomic
from vqshm.lane.inlet cimport Inlet, Loan


cdef class ResumingInlet(Inlet):
    cdef list _last

    cpdef int available(self) except -1
    cpdef bytes recv(self, object timeout=*)
    @cython.locals(messages=list, count=Py_ssize_t, enough="long long")
    cpdef list recv_many(self, Py_ssize_t limit, object timeout=*)
    @cython.locals(head=int)
    cpdef Loan recv_view(self, object timeout=*)
    @cython.locals(head=int)
    cpdef done(self)

    @cython.final
    cdef inline int _begin(self, object timeout) except -1
    @cython.final
    @cython.locals(head=int)
    cdef inline int _next_head(self) except -1
    @cython.final
    @cython.locals(head=int, data=bytes)
    cdef inline bytes _take_bytes(self)
    cdef _put_back(self)
