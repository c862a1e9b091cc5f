# C layout of the arena; the code is arena.py.

import cython

cdef int _SHIFT, _ROUND


@cython.final
cdef class Arena:
    cdef readonly Py_ssize_t size
    cdef readonly long long ticket
    cdef long long _past
    cdef unsigned int _mask
    cdef int _lines
    cdef int[::1] _start, _end

    @cython.locals(out=int, lines=int, at=int, oldest=int, slot="unsigned int")
    cpdef Py_ssize_t take(self, Py_ssize_t count) except -2
    cpdef int give(self, long long ticket) except -1
    cpdef bint is_out(self, long long ticket) except -1
    cdef inline bint _is_out(self, long long ticket) except -1
    @cython.locals(ticket="long long")
    cpdef int keep(self, bytearray owned) except -1
    cdef int _refuse_ticket(self, long long ticket) except -1
    @cython.locals(past="long long")
    cdef inline int _settle(self) noexcept
    cpdef int count(self) except -1
    @cython.locals(at=int, oldest=int)
    cpdef Py_ssize_t space(self) except -1
