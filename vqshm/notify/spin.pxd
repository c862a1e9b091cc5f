# C layout of the compiled body of spin.

cimport cython

from vqshm.memory.atomic cimport Region


cpdef bint until_changed(Region region, Py_ssize_t offset, int old, long long nanoseconds) except -1
cpdef long long now() except -1
cpdef long long tick() except -1


@cython.final
cdef class Pace:
    cdef readonly long long limit
    cdef public long long budget

    cpdef bint look(self, Region region, Py_ssize_t offset, int old) except -1
    cpdef slept(self, long long nanoseconds)
    cdef void _shorten(self) noexcept
