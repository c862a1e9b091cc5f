# C layout of the compiled body of kernel.

from vqshm.memory.atomic cimport Region

cdef int _WORK, _RUNG


cpdef int ring(int fd) except -1
cpdef int hush(int fd) except -1
cpdef int doze(object epoll, int bell, Region region, Py_ssize_t offset, int old, object seconds) except -1
