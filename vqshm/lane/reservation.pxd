# C layout of a reservation; the code is reservation.py.

import cython

cimport vqshm.memory.atomic as atomic
from vqshm.lane.outlet cimport Outlet
from vqshm.memory.lent cimport Lent


@cython.final
cdef class Reservation:
    cdef Outlet _outlet
    cdef Py_ssize_t _offset, _count
    cdef long long _ticket
    cdef int _epoch
    cdef Lent _lent
    cdef object _view

    @cython.locals(outlet=Outlet)
    cpdef commit(self, Py_ssize_t count=*)
    @cython.locals(outlet=Outlet)
    cpdef cancel(self)
    @cython.locals(outlet=Outlet)
    cdef Outlet _let_go(self)
    cdef inline bint _is_open(self, Outlet outlet) except -1
