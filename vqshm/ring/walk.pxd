# C layout of the walk; the code is walk.py.

import cython

cimport vqshm.memory.atomic as atomic
from vqshm.ring.descriptor cimport Descriptor

cdef int _NEXT, _WRITE, _INDIRECT
cdef unsigned long long _LENGTH


cdef class Walk:
    cdef readonly object memory
    cdef readonly unsigned long long addr
    cdef readonly unsigned long long len
    cdef readonly int flags
    cdef readonly int next
    cdef readonly unsigned long long writable_bytes
    cdef atomic.Span _table
    cdef atomic.Region _owner
    cdef int _size, _index, _ttl, _budget
    cdef bint _more, _indirect, _strict, _indirect_allowed
    cdef unsigned long long _total, _low, _high

    @cython.locals(index=int, flags=int, addr="unsigned long long", rest="unsigned long long", length="unsigned long long")
    cpdef bint step(self) except -1
    cdef int _enter(self, unsigned long long addr, unsigned long long length, int flags) except -1
    cdef int _check(self, unsigned long long addr, unsigned long long length, int flags) except -1
    cdef int _look_up(self, unsigned long long addr, unsigned long long length) except -1
    cpdef start(self, atomic.Region table, int size, int head)
    @cython.locals(descriptor=Descriptor)
    cpdef Descriptor descriptor(self)
    @cython.locals(twin=Walk)
    cpdef Walk copy(self)


@cython.locals(walk=Walk)
cpdef Walk new_walk(object memory, bint strict, bint indirect_allowed)
