# C layout of the driver half of a split queue; the code is split_driver.py.

import cython

cimport vqshm.memory.atomic as atomic
from vqshm.ring.split cimport Half
from vqshm.ring.suppress cimport need_event

cdef int _FLAGS, _IDX, _RING, _NEXT, _WRITE, _INDIRECT


cdef class DriverQueue(Half):
    cdef readonly int num_free, in_flight, last_used
    cdef int _avail_idx, _published, _used_seen, _entries, _free
    cdef long long _num_published
    cdef unsigned long long _low, _high, _table_base
    cdef atomic.Region _tables, _capacity, _parts, _last, _link

    @cython.locals(needed=int)
    cpdef int room_for(self, Py_ssize_t count) except -1
    cdef bint _in_table(self, Py_ssize_t count) except -1
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
