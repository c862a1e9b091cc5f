# C layout of the races; the code is races.py.

import cython

cimport vqshm.memory.atomic as atomic
cimport vqshm.notify.spin as spin
from vqshm.ring.split_device cimport DeviceQueue
from vqshm.ring.split_driver cimport DriverQueue

cdef int _IDX, _ROUND, _SLEPT, _TAKEN, _BLOCK_AT_ONCE, _LOOK
cdef unsigned long long _STEP, _MOST_LEAD


cdef class Racer:
    cdef atomic.Region _words, _private
    cdef int _own, _other, _bell, _ear
    cdef unsigned long long _state, _spread, _lead
    cdef readonly unsigned long long round, slept, notified, both

    @cython.locals(notify=bint, excused=bint, before="unsigned long long", _=Py_ssize_t)
    cpdef drive(self, DriverQueue queue, unsigned long long address, Py_ssize_t rounds)
    @cython.locals(notify=bint, excused=bint, head=int, before="unsigned long long", _=Py_ssize_t)
    cpdef serve(self, DeviceQueue queue, Py_ssize_t rounds)
    cdef int _begin(self) except -1
    cdef bint _tell(self, bint notify) except -1
    @cython.locals(place=int)
    cdef int _sleep(self, atomic.Region ring, int old) except -1
    cdef int _aim(self, bint slept) except -1
    @cython.locals(slept=bint)
    cdef int _judge(self, unsigned long long number, bint notify, bint excused) except -1
    @cython.locals(state="unsigned long long")
    cdef unsigned long long _random(self) noexcept
    cdef int _pause(self, unsigned long long looks) except -1
