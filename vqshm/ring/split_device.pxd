# C layout of the device half of a split queue; the code is split_device.py.

import cython

cimport vqshm.memory.atomic as atomic
from vqshm.ring.chain cimport DescriptorChain, Walk, new_chain, new_walk
from vqshm.ring.inflight cimport Inflight
from vqshm.ring.split cimport Half
from vqshm.ring.suppress cimport need_event

cdef int _FLAGS, _IDX, _RING, _NO_INTERRUPT


cdef class DeviceQueue(Half):
    cdef readonly bint indirect, strict
    cdef readonly int next_avail, next_used
    cdef public long long limit
    cdef int _avail_seen
    cdef long long _num_added
    cdef unsigned long long[::1] _shadow
    cdef unsigned short[::1] _taken
    cdef Walk _walk
    cdef Inflight _inflight
    cdef list _replays

    cpdef int available(self) except -1
    @cython.final
    @cython.locals(seen=int, count=int)
    cdef int _look(self) except -1
    cpdef int pop_head(self) except -2
    cpdef seek(self, Py_ssize_t next_avail, Py_ssize_t next_used)
    @cython.final
    @cython.locals(slot=int, head=int)
    cdef int _take(self) except -2
    @cython.locals(head=int)
    cpdef DescriptorChain pop(self)
    @cython.locals(chain=DescriptorChain)
    cpdef DescriptorChain chain(self, Py_ssize_t head)
    @cython.locals(used=int, seen=int, heads=list, slot=int)
    cpdef int resume(self) except -1
    @cython.locals(chain=DescriptorChain)
    cpdef DescriptorChain replay(self)
    cpdef add_used(self, Py_ssize_t head, Py_ssize_t written)  # Py_ssize_t: unlike int, it refuses a float
    cpdef put_used(self, Py_ssize_t head, Py_ssize_t written)
    @cython.final
    @cython.locals(offset=int, used=atomic.Region)
    cdef int _return(self, int head, long long written) except -1
    cpdef publish_used(self)
    @cython.locals(capacity="unsigned long long")
    cdef int _check_used(self, Py_ssize_t head, Py_ssize_t written) except -1
    @cython.locals(added="long long", event=int)
    cpdef bint needs_notification(self) except -1
    cpdef bint enable_notification(self) except -1
    cpdef disable_notification(self)


cdef class AvailIter:
    cdef DeviceQueue _queue
    cdef int _last

    @cython.locals(left=int)
    cpdef int next_head(self) except -2
