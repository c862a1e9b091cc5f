# C layout of the inlet; the code is inlet.py.

import cython

cimport vqshm.memory.atomic as atomic
from vqshm.memory.lent cimport Lent, new_lent
from vqshm.notify.bed cimport Bed
from vqshm.notify.eventfd cimport ring
from vqshm.notify.spin cimport Pace, now
from vqshm.ring.chain cimport DescriptorChain
from vqshm.ring.split_device cimport DeviceQueue

cdef int _IDX, _SHOW_EVERY, _HELD_MESSAGES, _HELD_BYTES


cdef class Inlet(DeviceQueue):
    cdef readonly object bell
    cdef public object keeper
    cdef readonly Pace pace
    cdef public Bed bed
    cdef public bint ready
    cdef readonly int attempts, epoch, lent
    cdef public long long messages, bytes_in, calls, calls_suppressed, waits
    cdef long long _shown
    cdef int _held, _most_held
    cdef long long _held_bytes, _most_held_bytes
    cdef bint _waiting
    cdef list _orphans
    cdef object _layout

    cpdef bytes recv(self, object timeout=*)
    @cython.locals(count=int, messages=list, enough="long long")
    cpdef list recv_many(self, Py_ssize_t limit, object timeout=*)
    cpdef Loan recv_view(self, object timeout=*)
    @cython.final
    @cython.locals(loan=Loan, length="unsigned long long")
    cdef inline Loan _lend(self, int head)

    @cython.final
    @cython.locals(head=int, length="unsigned long long", data=bytes)
    cdef inline bytes _receive(self)
    cdef bytes _receive_chain(self, int head)
    cdef Lent _lend_chain(self, DescriptorChain chain)
    @cython.final
    cdef inline int _give_back(self, int head, Py_ssize_t written, long long length) except -1
    cpdef done(self)
    cpdef tell(self)
    cpdef collect(self)
    cdef _write_reply(self, DescriptorChain chain, unsigned long long addr, object data, Py_ssize_t count)
    @cython.final
    cdef inline int _await_message(self, object timeout) except -1
    cdef _wait(self, object timeout)
    @cython.locals(awake=bint)
    cdef _wait_long(self, object timeout)
    @cython.locals(start="long long", there=bint)
    cdef bint _doze(self) except -1


@cython.final
cdef class Loan:
    cdef Inlet _inlet
    cdef int _head, _epoch
    cdef Py_ssize_t _count, _written, _room
    cdef unsigned long long _answer
    cdef DescriptorChain _chain
    cdef Lent _lent
    cdef object _view
    cdef readonly int attempts

    @cython.locals(inlet=Inlet, count=Py_ssize_t)
    cpdef reply(self, object data)
    @cython.locals(inlet=Inlet)
    cpdef release(self)
    cdef bint _valid(self) except -1
