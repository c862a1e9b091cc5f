# C layout of the compiled body of lent.

cimport cython

from vqshm.memory.atomic cimport Region


@cython.final
cdef class Lent:
    cdef Region _region
    cdef unsigned char* _base
    cdef Py_ssize_t _count
    cdef readonly Py_ssize_t exports
    cdef bint _readonly, _viewed, _closed

    cdef int open(self, Region region, Py_ssize_t offset, Py_ssize_t count, bint readonly) except -1
    cpdef object view(self)
    cpdef close(self)


cpdef Lent new_lent(Region region, Py_ssize_t offset, Py_ssize_t count, bint readonly)
