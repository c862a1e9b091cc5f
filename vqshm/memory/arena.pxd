# C layout of the arena; the code is arena.py.

import cython

cdef int _ROUND


@cython.final
cdef class Arena:
    cdef readonly Py_ssize_t size, free
    cdef readonly int slot, out
    cdef Py_ssize_t _at
    cdef unsigned int _mask
    cdef int _oldest
    cdef long long[::1] _taken

    @cython.locals(size=Py_ssize_t, offset=Py_ssize_t, used=Py_ssize_t)
    cpdef Py_ssize_t take(self, Py_ssize_t count) except -2
    @cython.locals(size="long long")
    cpdef int give(self, int slot) except -1
    cdef int _refuse_slot(self, int slot) except -1
