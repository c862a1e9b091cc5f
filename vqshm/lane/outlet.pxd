# C layout of the outlet; the code is outlet.py.

import cython

cimport vqshm.memory.atomic as atomic
from vqshm.lane.call cimport Call
from vqshm.lane.holdings cimport Holdings
from vqshm.lane.reservation cimport Reservation
from vqshm.memory.lent cimport Lent, new_lent
from vqshm.notify.eventfd cimport ring
from vqshm.notify.spin cimport Pace
from vqshm.ring.tries cimport Undone

cdef int _IDX, _WRITE, _BATCH, _SHOW_EVERY, _NONE, _WAITING, _FORGOTTEN, _LOST, _ANSWERED, _TAKING


@cython.final
cdef class Outlet(Holdings):
    cdef readonly object bell
    cdef public object keeper
    cdef readonly Pace pace
    cdef public bint ready
    cdef readonly int epoch
    cdef public long long kicks, kicks_suppressed, waits
    cdef int _unshown
    cdef unsigned long long _base
    cdef atomic.Region _window
    cdef atomic.Span _bytes
    cdef Undone _undone
    cdef bint _waiting

    cpdef send(self, object data, object timeout=*)
    @cython.locals(done="long long")
    cpdef send_many(self, object messages, object timeout=*)
    @cython.locals(reservation=Reservation, offset=Py_ssize_t)
    cpdef Reservation reserve(self, Py_ssize_t count, object timeout=*)
    @cython.locals(call=Call)
    cpdef bytes call(self, object data, Py_ssize_t answer_bytes, object timeout=*)
    @cython.locals(call=Call, count=Py_ssize_t, start=Py_ssize_t, offset=Py_ssize_t, ticket="long long",
                   answer="unsigned long long")
    cpdef Call start_call(self, object data, Py_ssize_t answer_bytes, object timeout=*)

    @cython.locals(count=Py_ssize_t, offset=Py_ssize_t)
    cdef inline int _place(self, object data, object timeout) except -1
    @cython.locals(ticket="long long")
    cdef _fill_pieces(self, Py_ssize_t offset, object pieces, object counts)
    @cython.locals(offset=Py_ssize_t)
    cdef inline Py_ssize_t _room(self, Py_ssize_t count, object timeout, int descriptors=*) except -1
    @cython.locals(offset=Py_ssize_t)
    cdef inline Py_ssize_t _take(self, Py_ssize_t count) except -2
    cdef int _check_turn(self) except -1
    cdef inline int _offer_message(self, Py_ssize_t offset, Py_ssize_t count, long long ticket) except -1
    @cython.locals(shown=int)
    cdef inline int _show(self) except -1
    @cython.locals(count=int, head=int, ticket="long long")
    cdef int _reclaim(self) except -1
    @cython.locals(head=int, slot=int, ticket="long long", lost=bint)
    cdef int _next_answer(self) except -2
    cdef int _commit(self, Reservation reservation, Py_ssize_t count) except -1

    cdef Py_ssize_t _await_room(self, Py_ssize_t count, int descriptors, object timeout) except -1
    @cython.locals(offset=Py_ssize_t, seen=bint)
    cdef Py_ssize_t _await_room_long(self, Py_ssize_t count, int descriptors, object timeout) except -1
    cdef Py_ssize_t _await_answer(self, long long ticket, object timeout) except -1
    @cython.locals(state="long long", seen=bint)
    cdef Py_ssize_t _await_answer_long(self, long long ticket, object timeout) except -1
    cdef _start_waiting(self)
    cdef bint _look(self) except -1
