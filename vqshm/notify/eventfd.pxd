# C layout of an eventfd; the code is eventfd.py.

import cython

cimport vqshm.notify.kernel as kernel


cdef class EventFd:
    cdef int _fd
    cdef object _owner

    cpdef int fileno(self) except -1
    cpdef signal(self)
    cpdef clear(self)


@cython.locals(event=EventFd)
cpdef ring(object bell)
