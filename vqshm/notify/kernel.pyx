"""Kernel, compiled body; the contract and its reasons stand in the interpreted body, kernel.py."""

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR

import os

from vqshm.memory.atomic cimport Region

cdef extern from "kernel.h" nogil:
    int vq_ring(int) noexcept
    int vq_hush(int) noexcept
    int vq_doze(int, int, int) noexcept

cdef extern from "spin.h" nogil:
    bint vq_changed_u16(const unsigned char*, unsigned short) noexcept
    long long vq_now() noexcept

WORK, RUNG = 1, 2
_WORK, _RUNG = WORK, RUNG
cdef double LONGEST = 3600.0  # seconds; epoll counts milliseconds in an int


cpdef int ring(int fd) except -1:
    return insist(vq_ring, fd)


cpdef int hush(int fd) except -1:
    return insist(vq_hush, fd)


cpdef int doze(object epoll, int bell, Region region, Py_ssize_t offset, int old, object seconds) except -1:
    cdef int found, milliseconds = -1, number
    cdef long long end = 0
    if not 0 <= offset <= region.size - 2:
        region.view(offset, 2)  # raises
    cdef const unsigned char* word = region.base + offset
    if seconds is not None:
        end = vq_now() + <long long>(min(<double>seconds, LONGEST) * 1e9)
    while True:
        number = epoll.fileno()
        if seconds is not None:
            milliseconds = <int>((max(0, end - vq_now()) + 999_999) // 1_000_000)
        with nogil:
            found = vq_doze(number, bell, milliseconds)
        if found >= 0:
            return (_WORK if vq_changed_u16(word, <unsigned short>old) else 0) | (_RUNG if found else 0)
        go_on(found)


cdef int insist(int (*call)(int) noexcept nogil, int fd) except -1:
    """Make a system call without the GIL, again after each signal."""
    cdef int failed
    while True:
        with nogil:
            failed = call(fd)
        if failed == 0:
            return 0
        go_on(failed)


cdef int go_on(int failed) except -1:
    """After a system call that failed: return if a signal did it, and its Python handler has run."""
    if failed != -EINTR:
        raise OSError(-failed, os.strerror(-failed))
    PyErr_CheckSignals()
    return 0
