# C layout of the benchmark's inner loops; the code is loops.py.

import cython

cimport vqshm.memory.atomic as atomic
from vqshm.ring.split_device cimport DeviceQueue

cdef int _IDX


@cython.locals(total="unsigned long long", _=Py_ssize_t, place=Py_ssize_t, queue=DeviceQueue, ring=atomic.Region)
cpdef unsigned long long serve_chains(list queues, list rings, Py_ssize_t rounds) except? 0xFFFFFFFFFFFFFFFF
@cython.locals(total="unsigned long long", head=int)
cpdef unsigned long long serve_available(DeviceQueue queue) except? 0xFFFFFFFFFFFFFFFF
@cython.locals(want="unsigned long long", done=Py_ssize_t, looks=Py_ssize_t)
cpdef Py_ssize_t bounce(atomic.Region word, unsigned long long first, Py_ssize_t count, Py_ssize_t patience) except -1
