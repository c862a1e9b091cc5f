# C layout of the outlet; the code is outlet.py.

import cython

cimport vqshm.memory.atomic as atomic
from vqshm.memory.arena cimport Arena
from vqshm.memory.lent cimport Lent, new_lent
from vqshm.notify.eventfd cimport ring
from vqshm.notify.spin cimport Pace
from vqshm.ring.split_driver cimport DriverQueue
from vqshm.ring.tries cimport Undone

cdef int _IDX, _WRITE, _BATCH, _SHOW_EVERY, _WAITING, _FORGOTTEN, _LOST


@cython.final
cdef class Outlet(DriverQueue):
    cdef readonly Arena arena
    cdef readonly object bell
    cdef public object keeper
    cdef readonly Pace pace
    cdef public bint ready
    cdef readonly int epoch, reserved, calls
    cdef public long long messages, bytes_out, kicks, kicks_suppressed, waits
    cdef int _unshown
    cdef unsigned long long _base
    cdef atomic.Region _window
    cdef atomic.Span _bytes
    cdef unsigned short[::1] _slot
    cdef dict _answers
    cdef list _orphans
    cdef Undone _undone
    cdef bint _waiting

    cpdef send(self, object data, object timeout=*)
    @cython.locals(done="long long")
    cpdef send_many(self, object messages, object timeout=*)
    @cython.locals(reservation=Reservation, offset=Py_ssize_t)
    cpdef Reservation reserve(self, Py_ssize_t count, object timeout=*)
    @cython.locals(call=Call)
    cpdef bytes call(self, object data, Py_ssize_t answer_bytes, object timeout=*)
    @cython.locals(call=Call, count=Py_ssize_t, start=Py_ssize_t, offset=Py_ssize_t, slot=int, head=int,
                   answer="unsigned long long")
    cpdef Call start_call(self, object data, Py_ssize_t answer_bytes, object timeout=*)

    @cython.locals(count=Py_ssize_t, offset=Py_ssize_t)
    cdef inline int _place(self, object data, object timeout) except -1
    @cython.locals(offset=Py_ssize_t)
    cdef inline Py_ssize_t _room(self, Py_ssize_t count, object timeout, int descriptors=*) except -1
    @cython.locals(head=int)
    cdef inline int _offer_message(self, Py_ssize_t offset, Py_ssize_t count, int slot) except -1
    cdef inline int _show(self) except -1
    @cython.locals(count=int, head=int)
    cdef int _reclaim(self) except -1
    cdef Py_ssize_t _await_room(self, Py_ssize_t count, int descriptors, object timeout) except -1
    cdef Py_ssize_t _await_answer(self, int slot, object timeout) except -1
    cdef _forget_call(self, int slot)
    @cython.locals(offset=Py_ssize_t, seen=bint)
    cdef Py_ssize_t _await_room_long(self, Py_ssize_t count, int descriptors, object timeout) except -1
    @cython.locals(written="long long", seen=bint)
    cdef Py_ssize_t _await_answer_long(self, int slot, object timeout) except -1
    cdef _start_waiting(self)
    @cython.locals(slot=int)
    cdef _fill_pieces(self, Py_ssize_t offset, object pieces, object counts)
    cpdef collect(self)
    cdef bint _look(self) except -1
    @cython.locals(lost=bint)
    cdef bint _is_awaited(self, int head, int slot) except -1


@cython.final
cdef class Call:
    cdef Outlet _outlet
    cdef Py_ssize_t _offset
    cdef int _slot, _epoch

    @cython.locals(outlet=Outlet, written=Py_ssize_t)
    cpdef bytes answer(self, object timeout=*)
    @cython.locals(outlet=Outlet)
    cpdef forget(self)


@cython.final
cdef class Reservation:
    cdef Outlet _outlet
    cdef Py_ssize_t _offset, _count
    cdef int _slot, _epoch
    cdef Lent _lent
    cdef object _view

    @cython.locals(outlet=Outlet)
    cpdef commit(self, Py_ssize_t count=*)
    @cython.locals(outlet=Outlet)
    cdef Outlet _let_go(self)
