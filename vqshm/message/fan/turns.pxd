# C layout of the turns; the code is turns.py.

import cython

cimport vqshm.memory.atomic as atomic
cimport vqshm.notify.spin as spin
from vqshm.lane.outlet cimport Outlet
from vqshm.memory.arena cimport Arena

cdef long long _WORTH, _TENURE
cdef int _RUN, _FADE, _GRAIN


@cython.final
cdef class Turns:
    cdef readonly int turn, left
    cdef object _keeper
    cdef list _outlets
    cdef Outlet _outlet
    cdef long long[::1] _cost, _since, _got, _seen
    cdef long long _began, _tick

    @cython.locals(count=Py_ssize_t)
    cpdef send(self, object data, object timeout=*)
    @cython.locals(count=Py_ssize_t, everybody=int, fit=int, number=int, outlet=Outlet)
    cpdef send_all(self, object data, object timeout=*)
    @cython.locals(number=int)
    cpdef int pick(self, Py_ssize_t count) except -2
    @cython.locals(number=int)
    cdef _glance(self)
    @cython.locals(everybody=int, kept=int, idle=int, busy=int, got="long long", out=int, step=int, number=int, wait=int, outlet=Outlet)
    cdef int _judge(self, Py_ssize_t count, long long now) except -2
    @cython.locals(outlet=Outlet, given=int, out=int, cost="long long", took="long long")
    cdef int _expect(self, int number, long long now) except -1
    @cython.locals(arena=Arena)
    cdef inline bint _has_room(self, Outlet outlet, Py_ssize_t count) except -1
