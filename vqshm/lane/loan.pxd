# C layout of a loan; the code is loan.py.

import cython

cimport vqshm.memory.atomic as atomic
from vqshm.lane.inlet cimport Inlet
from vqshm.memory.lent cimport Lent
from vqshm.ring.chain cimport DescriptorChain


@cython.final
cdef class Loan:
    cdef Inlet _inlet
    cdef int _head, _epoch
    cdef long long _number
    cdef bint _seen
    cdef Py_ssize_t _count, _written, _room
    cdef unsigned long long _answer
    cdef DescriptorChain _chain
    cdef Lent _lent
    cdef object _view
    cdef readonly int attempts

    @cython.locals(inlet=Inlet, count=Py_ssize_t)
    cpdef reply(self, object data)
    @cython.locals(inlet=Inlet)
    cpdef release(self)
    cdef bint _valid(self) except -1
