# C layout of the inlet; the code is inlet.py.

import cython

cimport vqshm.memory.atomic as atomic
from vqshm.lane.loan cimport Loan
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
    cdef readonly int attempts, epoch
    cdef public long long messages, bytes_in, calls, calls_suppressed, waits
    cdef long long _shown
    cdef int _most_held, _told, _from, _head
    cdef long long _held_bytes, _most_held_bytes
    cdef unsigned long long _waiting
    cdef bint _left, _in_doubt
    cdef list _got, _kept, _orphans
    cdef Loan _back
    cdef unsigned char[::1] _lent_heads
    cdef object _layout

    cpdef seek(self, Py_ssize_t next_avail, Py_ssize_t next_used)
    @cython.locals(left=int)
    cpdef int available(self) except -1
    @cython.locals(head=int, data=bytes)
    cpdef bytes recv(self, object timeout=*)
    @cython.locals(count=int, head=int, messages=list, data=bytes, enough="long long")
    cpdef list recv_many(self, Py_ssize_t limit, object timeout=*)
    @cython.locals(loan=Loan)
    cpdef Loan recv_view(self, object timeout=*)

    @cython.final
    @cython.locals(count=int)
    cdef inline int _count_there(self, Py_ssize_t limit) except -1
    @cython.final
    cdef inline bytes _copy_message(self, int head)
    @cython.final
    @cython.locals(chain=DescriptorChain, data=bytes)
    cdef bytes _copy_chain(self, int head)
    @cython.final
    cdef inline bint _pass_on(self, int head, long long length) except -1
    @cython.final
    @cython.locals(held=int)
    cdef inline bint _is_much_held(self) noexcept
    cdef bytes _tell_first(self, bytes data, object timeout)
    cdef list _tell_many(self, list messages)
    cdef int _keep(self, list messages) except -1
    cdef int _take_kept(self, list messages) except -1
    @cython.final
    @cython.locals(loan=Loan)
    cdef inline Loan _new_loan(self, int head, int attempts)
    @cython.final
    @cython.locals(loan=Loan)
    cdef inline Loan _lend(self, int head)
    cdef Loan _hand_out(self, Loan loan)
    cdef Lent _lend_chain(self, DescriptorChain chain)
    cpdef done(self)
    @cython.locals(told=int)
    cpdef tell(self)
    @cython.locals(loan=Loan)
    cpdef collect(self)
    @cython.final
    cdef int _take_back(self, Loan loan) except -1
    @cython.final
    cdef inline int _give(self, Loan loan) except -1
    @cython.final
    cdef inline int _finish_giving(self, Loan loan) except -1

    @cython.final
    cdef int _position(self) except -1
    @cython.final
    cdef inline bint _is_torn(self) except -1
    @cython.locals(count=Py_ssize_t)
    cdef Py_ssize_t _count_left(self) except -1
    cdef int _settle(self, list got) except -1
    @cython.locals(head=int)
    cdef int _pass_on_again(self) except -1
    @cython.locals(loan=Loan, head=int, data=bytes)
    cdef int _put_back(self, object thing) except -1
    @cython.locals(data=bytes)
    cdef bytes _next_left(self)
    @cython.locals(messages=list)
    cdef list _many_left(self, Py_ssize_t limit)
    @cython.locals(last=Py_ssize_t, head=int, data=bytes)
    cdef int _keep_replay(self) except -1
    @cython.locals(last=Py_ssize_t, loan=Loan)
    cdef Loan _lend_left(self)
    @cython.locals(loan=Loan)
    cdef Loan _lend_copy(self, bytes data)
    cdef _write_reply(self, DescriptorChain chain, unsigned long long addr, object data, Py_ssize_t count)
    @cython.final
    cdef inline bint _await_message(self, object timeout) except -1
    cdef bint _wait(self, object timeout) except -1
    cdef int _check_alone(self) except -1
    cdef _wait_long(self, object timeout)
    @cython.locals(start="long long", there=bint)
    cdef bint _doze(self) except -1


cpdef long long _number_of(Loan loan)
