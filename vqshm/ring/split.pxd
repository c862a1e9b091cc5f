# C layout of the two halves of a split queue; the code is split.py.

import cython

cimport vqshm.memory.atomic as atomic
from vqshm.ring.chain cimport DescriptorChain, Walk, new_chain, new_walk
from vqshm.ring.suppress cimport need_event

cdef int _FLAGS, _IDX, _RING, _NEXT, _WRITE, _INDIRECT


cdef class _Half:
    cdef readonly object memory
    cdef readonly int size
    cdef readonly bint event_idx
    cdef readonly object name
    cdef readonly object broken
    cdef int _mask
    cdef atomic.Region _desc, _avail, _used


cdef class DeviceQueue(_Half):
    cdef readonly bint indirect, strict
    cdef readonly int next_avail, next_used
    cdef int _avail_seen
    cdef long long _num_added
    cdef atomic.Region _shadow, _taken
    cdef Walk _walk

    @cython.locals(seen=int, count=int)
    cpdef int available(self) except -1
    cpdef int pop_head(self) except -2
    cpdef seek(self, Py_ssize_t next_avail, Py_ssize_t next_used)
    @cython.locals(slot=int, head=int)
    cdef int _take(self) except -2
    @cython.locals(head=int)
    cpdef DescriptorChain pop(self)
    @cython.locals(chain=DescriptorChain)
    cpdef DescriptorChain chain(self, Py_ssize_t head)
    @cython.locals(offset=int)
    cpdef add_used(self, Py_ssize_t head, Py_ssize_t written)  # Py_ssize_t: unlike int, it refuses a float
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


cdef class DriverQueue(_Half):
    cdef readonly int num_free, in_flight, last_used
    cdef int _avail_idx, _published, _used_seen, _entries, _free
    cdef long long _num_published
    cdef unsigned long long _low, _high, _table_base
    cdef atomic.Region _tables, _capacity, _parts, _last, _link

    cpdef publish(self)
    @cython.locals(addr="unsigned long long", length=Py_ssize_t)
    cdef unsigned long long _check_buffers(self, object buffers, unsigned long long total) except? 0xFFFFFFFFFFFFFFFF
    @cython.locals(remaining=int, index=int, last=int, flags=int, addr="unsigned long long", length="unsigned long long")
    cdef int _fill_chain(self, object readable, object writable) except -1
    @cython.locals(count=int, first=int, position=int, flags=int, following=int, addr="unsigned long long",
                   length="unsigned long long", table="unsigned long long")
    cdef int _fill_table(self, int head, object readable, object writable) except -1
    @cython.locals(seen=int, count=int)
    cpdef int used(self) except -1
    @cython.locals(offset=int, head="long long", written="long long", capacity="unsigned long long")
    cpdef object reap(self)
    cdef int _release(self, int head) except -1
    @cython.locals(added="long long", event=int)
    cpdef bint needs_kick(self) except -1


cdef int _put_descriptor(atomic.Region table, Py_ssize_t index, unsigned long long addr, unsigned long long length,
                         unsigned long long flags, unsigned long long following) except -1
