# C layout of the device half of a split queue; the code is split_device.py.

import cython

cimport vqshm.memory.atomic as atomic
from vqshm.ring.chain cimport DescriptorChain, new_chain
from vqshm.ring.walk cimport Walk, new_walk
from vqshm.ring.inflight cimport Inflight
from vqshm.ring.split cimport Half
from vqshm.ring.suppress cimport need_event
from vqshm.ring.tries cimport Tries

cdef int _FLAGS, _IDX, _RING, _NO_INTERRUPT, _NEXT, _WRITE, _LINKS, _NOWHERE
cdef unsigned long long _LENGTH


cdef class DeviceQueue(Half):
    cdef readonly bint indirect, strict
    cdef readonly int next_avail, next_used, given_up
    cdef public long long limit
    cdef readonly bint single, writable
    cdef readonly unsigned long long addr, length, answer_addr, answer_room
    cdef unsigned long long _low, _high
    cdef atomic.Region _window
    cdef atomic.Span _bytes
    cdef int _avail_seen, _claimed, _giving, _given, _replayed
    cdef long long _num_added
    cdef unsigned long long[::1] _shadow
    cdef unsigned short[::1] _taken
    cdef Walk _walk
    cdef Inflight _inflight
    cdef list _replays

    cpdef int available(self) except -1
    @cython.final
    @cython.locals(seen=int, count=int)
    cdef inline int _look(self) except -1
    @cython.final
    cdef int _refuse_count(self, int seen, int count) except -1
    cpdef int pop_head(self) except -2
    @cython.final
    @cython.locals(head=int)
    cdef inline int _pop_head(self) except -2
    @cython.final
    @cython.locals(head=int)
    cdef int pop_single(self) except -2
    @cython.final
    @cython.locals(addr="unsigned long long", rest="unsigned long long", length="unsigned long long", flags=int)
    cdef inline bint _fetch(self, int head) except -1
    @cython.final
    @cython.locals(addr="unsigned long long", rest="unsigned long long", length="unsigned long long", last=int,
                   answer="unsigned long long", room="unsigned long long")
    cdef bint _fetch_call(self, int head) except -1
    @cython.final
    cdef inline bint _holds(self, unsigned long long addr, unsigned long long length) except -1
    @cython.final
    cdef bint _find(self, unsigned long long addr, unsigned long long length) except -1
    cpdef seek(self, Py_ssize_t next_avail, Py_ssize_t next_used)
    @cython.final
    cdef inline int _claim(self) except -2
    @cython.final
    @cython.locals(slot=Py_ssize_t, head=Py_ssize_t)
    cdef inline int _claim_seen(self) except -2
    @cython.final
    cdef int _doubt_head(self, int head, int slot) except -1
    @cython.final
    cdef int _refuse_head(self, int head, int slot) except -1
    @cython.locals(head=int, chain=DescriptorChain)
    cpdef DescriptorChain pop(self)
    @cython.locals(chain=DescriptorChain)
    cpdef DescriptorChain chain(self, Py_ssize_t head)
    @cython.locals(used=int, seen=int, heads=list, slot=int)
    cpdef int resume(self) except -1
    @cython.locals(tries=Tries)
    cdef bint _give_up(self, int head) except -1
    @cython.final
    cdef int _attempt(self, int head) except -1
    @cython.locals(chain=DescriptorChain)
    cpdef DescriptorChain replay(self)
    cpdef DescriptorChain again(self, Py_ssize_t head)
    @cython.locals(chain=DescriptorChain)
    cdef DescriptorChain _again(self, Py_ssize_t head)
    cpdef add_used(self, Py_ssize_t head, Py_ssize_t written)  # Py_ssize_t: unlike int, it refuses a float
    cpdef put_used(self, Py_ssize_t head, Py_ssize_t written)
    @cython.final
    cdef inline int _put(self, Py_ssize_t head, Py_ssize_t written) except -1
    @cython.final
    @cython.locals(offset=Py_ssize_t)
    cdef inline int _return(self, Py_ssize_t head, long long written) except -1
    @cython.final
    cdef int _mend(self) except -1
    @cython.final
    cdef int _refuse_used(self, Py_ssize_t head, Py_ssize_t written) except -1
    cpdef publish_used(self)
    @cython.final
    cdef inline int _publish(self) except -1
    @cython.locals(wanted=bint)
    cpdef bint needs_notification(self) except -1
    @cython.final
    @cython.locals(event=int)
    cdef inline bint _is_wanted(self, long long added) except -1
    cpdef bint enable_notification(self) except -1
    cpdef disable_notification(self)


cdef class AvailIter:
    cdef DeviceQueue _queue
    cdef int _last

    @cython.locals(head=int)
    cpdef int next_head(self) except -2
    @cython.locals(left=int)
    cdef int _claim(self) except -2
