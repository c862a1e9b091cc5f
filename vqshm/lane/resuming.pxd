# C layout of the resuming inlet; the code is resuming.py.

import cython

cimport vqshm.memory.atomic as atomic
from vqshm.lane.inlet cimport Inlet
from vqshm.lane.loan cimport Loan


cdef class ResumingInlet(Inlet):
    cdef list _last
    cdef dict _tried

    cpdef int available(self) except -1
    @cython.locals(heads=list, head=int, data=bytes)
    cpdef bytes recv(self, object timeout=*)
    @cython.locals(messages=list, heads=list, head=int, data=bytes, count=Py_ssize_t,
                   enough="long long")
    cpdef list recv_many(self, Py_ssize_t limit, object timeout=*)
    @cython.locals(loan=Loan)
    cpdef Loan recv_view(self, object timeout=*)
    @cython.locals(head=int)
    cpdef done(self)

    @cython.final
    cdef inline int _begin(self, object timeout) except -1
    @cython.final
    @cython.locals(last=Py_ssize_t, head=int)
    cdef inline int _next_head(self) except -2
    @cython.final
    @cython.locals(last=Py_ssize_t)
    cdef inline int _pass(self) except -1
    @cython.final
    cdef inline int _take(self, bytes data) except -1
    @cython.final
    @cython.locals(heads=list)
    cdef inline list _open(self)
    @cython.final
    cdef int _put_all_back(self, list heads) except -1
