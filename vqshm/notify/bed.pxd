# C layout of a bed; the code is bed.py.

import cython

cimport vqshm.notify.kernel as kernel
from vqshm.memory.atomic cimport Region
from vqshm.notify.eventfd cimport EventFd

cdef int _WORK, _RUNG


@cython.final
cdef class Bed:
    cdef object _epoll, _seconds
    cdef EventFd _bell
    cdef bint _rung

    cpdef make(self, object seconds)
    @cython.locals(found=int)
    cpdef bint doze(self, Region region, Py_ssize_t offset, int old) except -1
