# C layout of the chain; the code is chain.py.

import cython

from vqshm.ring.walk cimport Walk


cdef class DescriptorChain:
    cdef readonly object memory
    cdef readonly int attempts, head_index
    cdef readonly object queue
    cdef readonly unsigned long long readable_bytes, writable_bytes
    cdef Walk _walk
    cdef list _descriptors


@cython.locals(chain=DescriptorChain)
cpdef DescriptorChain new_chain(Walk walk, int head_index, object queue)
