# C layout of the driver half of a split queue; the code is split_driver.py.

import cython

cimport vqshm.memory.atomic as atomic
from vqshm.ring.split cimport Half
from vqshm.ring.suppress cimport need_event

cdef int _FLAGS, _IDX, _RING, _NO_NOTIFY, _NEXT, _WRITE, _INDIRECT, _OFFERING, _ACCEPTING


cdef class DriverQueue(Half):
    cdef readonly int num_free, in_flight, last_used
    cdef readonly long long written
    cdef int _avail_idx, _published, _used_seen, _entries, _free, _torn
    cdef long long _num_published
    cdef unsigned long long _low, _high, _table_base
    cdef atomic.Region _table_window
    cdef atomic.Span _tables
    cdef unsigned long long[::1] _capacity
    cdef unsigned short[::1] _parts, _last, _link

    @cython.final
    @cython.locals(head=Py_ssize_t)
    cdef int add_one(self, unsigned long long addr, unsigned long long length, int flags) except -1
    @cython.final
    @cython.locals(head=Py_ssize_t, last=Py_ssize_t)
    cdef int add_pair(self, unsigned long long addr, unsigned long long length, unsigned long long answer,
                      unsigned long long room) except -1
    @cython.final
    cdef inline int _offer(self, Py_ssize_t head, Py_ssize_t last, int needed, unsigned long long capacity) except -1
    @cython.locals(needed=int)
    cpdef int room_for(self, Py_ssize_t count) except -1
    cdef bint _in_table(self, Py_ssize_t count) except -1
    @cython.final
    cdef int _mend(self) except -1
    @cython.final
    cdef int _mend_ring(self) except -1
    cpdef bint is_in_flight(self, Py_ssize_t head) except -1
    cpdef publish(self)
    @cython.locals(addr="unsigned long long", length=Py_ssize_t)
    cdef unsigned long long _check_buffers(self, object buffers, unsigned long long total) except? 0xFFFFFFFFFFFFFFFF
    @cython.locals(remaining=int, index=int, last=int, flags=int, addr="unsigned long long", length="unsigned long long")
    cdef int _fill_chain(self, object readable, object writable) except -1
    @cython.locals(count=int, first=int, position=int, flags=int, following=int, addr="unsigned long long",
                   length="unsigned long long", table="unsigned long long")
    cdef int _fill_table(self, int head, object readable, object writable) except -1
    cpdef int used(self) except -1
    @cython.final
    @cython.locals(seen=int, count=int)
    cdef inline int _look_used(self) except -1
    @cython.final
    cdef int _refuse_count(self, int seen, int count) except -1
    @cython.locals(head=int)
    cpdef object reap(self)
    cpdef int peek_head(self) except -2
    @cython.final
    @cython.locals(offset=Py_ssize_t, head=Py_ssize_t, written="unsigned long long")
    cdef inline int _peek(self) except -2
    @cython.final
    @cython.locals(head=int)
    cdef int reap_head(self) except -2
    @cython.final
    cdef int _refuse_used(self, Py_ssize_t head, unsigned long long written) except -1
    cpdef int accept(self, int head) except -1
    @cython.final
    cdef inline int _accept(self, int head) except -1
    cpdef bint needs_kick(self) except -1
    @cython.final
    @cython.locals(event=int)
    cdef inline bint _ask(self, int position, long long added) except -1
    @cython.final
    @cython.locals(old=int, new=int)
    cdef bint publish_and_ask(self) except -1


cdef inline int _put_descriptor(atomic.Span table, Py_ssize_t index, unsigned long long addr, unsigned long long length,
                         unsigned long long flags, unsigned long long following) except -1
