# The compiled body of vqshm.memory.atomic: C atomics on raw memory, inlined into every module that cimports it.
# One bounds check stands in front of each access; what fails it takes the slow road, which raises or knows better.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy

cdef extern from "atomic.h" nogil:
    unsigned short vq_load_u16(const unsigned char*) noexcept
    unsigned int vq_load_u32(const unsigned char*) noexcept
    unsigned long long vq_load_u64(const unsigned char*) noexcept
    void vq_store_u16(unsigned char*, unsigned short) noexcept
    void vq_store_u32(unsigned char*, unsigned int) noexcept
    void vq_store_u64(unsigned char*, unsigned long long) noexcept
    unsigned short vq_get_u16(const unsigned char*) noexcept
    unsigned int vq_get_u32(const unsigned char*) noexcept
    unsigned long long vq_get_u64(const unsigned char*) noexcept
    void vq_put_u16(unsigned char*, unsigned short) noexcept
    void vq_put_u32(unsigned char*, unsigned int) noexcept
    void vq_put_u64(unsigned char*, unsigned long long) noexcept
    void vq_fence() noexcept


cdef struct Hold:  # a Py_buffer that Cython does not show to the cycle collector; why: see Region in atomic.pyx
    Py_buffer buffer


cdef class Region:
    cdef unsigned char* base
    cdef readonly Py_ssize_t size
    cdef readonly bint readonly
    cdef readonly object beyond
    cdef Py_ssize_t _writable_size
    cdef Hold _hold
    cdef bint _held
    cdef object _keep


cdef Py_ssize_t slow_count(object data) except -1
cdef int slow_fill(Region region, Py_ssize_t offset, object data, Py_ssize_t count) except -1
cdef int no_room(Region region, Py_ssize_t offset, Py_ssize_t count) except -1
cdef unsigned long long slow_get(Region region, Py_ssize_t offset, int width, bint ordered) except? 0xFFFFFFFFFFFFFFFF
cdef int slow_put(Region region, Py_ssize_t offset, int width, unsigned long long value, bint ordered) except -1


cdef inline Py_ssize_t count_of(object data) except -1:
    if PyBytes_CheckExact(data):
        return PyBytes_GET_SIZE(data)
    return slow_count(data)


cdef inline int fill(Region region, Py_ssize_t offset, object data, Py_ssize_t count) except -1:
    if PyBytes_CheckExact(data) and PyBytes_GET_SIZE(data) == count and 0 <= offset <= region._writable_size - count:
        memcpy(region.base + offset, PyBytes_AS_STRING(data), count)
        return 0
    return slow_fill(region, offset, data, count)


cdef inline bytes copy(Region region, Py_ssize_t offset, Py_ssize_t count):
    if count < 0 or offset < 0 or offset > region.size - count:
        no_room(region, offset, count)
    return PyBytes_FromStringAndSize(<char*>region.base + offset, count)


cdef inline int fence() except -1:
    vq_fence()
    return 0


cdef inline int load_u16(Region region, Py_ssize_t offset) except -1:
    if 0 <= offset <= region.size - 2:
        return vq_load_u16(region.base + offset)
    return <int>slow_get(region, offset, 2, True)


cdef inline long long load_u32(Region region, Py_ssize_t offset) except -1:
    if 0 <= offset <= region.size - 4:
        return vq_load_u32(region.base + offset)
    return <long long>slow_get(region, offset, 4, True)


cdef inline unsigned long long load_u64(Region region, Py_ssize_t offset) except? 0xFFFFFFFFFFFFFFFF:
    if 0 <= offset <= region.size - 8:
        return vq_load_u64(region.base + offset)
    return slow_get(region, offset, 8, True)


cdef inline int store_u16(Region region, Py_ssize_t offset, unsigned short value) except -1:
    if 0 <= offset <= region._writable_size - 2:
        vq_store_u16(region.base + offset, value)
        return 0
    return slow_put(region, offset, 2, value, True)


cdef inline int store_u32(Region region, Py_ssize_t offset, unsigned int value) except -1:
    if 0 <= offset <= region._writable_size - 4:
        vq_store_u32(region.base + offset, value)
        return 0
    return slow_put(region, offset, 4, value, True)


cdef inline int store_u64(Region region, Py_ssize_t offset, unsigned long long value) except -1:
    if 0 <= offset <= region._writable_size - 8:
        vq_store_u64(region.base + offset, value)
        return 0
    return slow_put(region, offset, 8, value, True)


cdef inline int get_u16(Region region, Py_ssize_t offset) except -1:
    if 0 <= offset <= region.size - 2:
        return vq_get_u16(region.base + offset)
    return <int>slow_get(region, offset, 2, False)


cdef inline long long get_u32(Region region, Py_ssize_t offset) except -1:
    if 0 <= offset <= region.size - 4:
        return vq_get_u32(region.base + offset)
    return <long long>slow_get(region, offset, 4, False)


cdef inline unsigned long long get_u64(Region region, Py_ssize_t offset) except? 0xFFFFFFFFFFFFFFFF:
    if 0 <= offset <= region.size - 8:
        return vq_get_u64(region.base + offset)
    return slow_get(region, offset, 8, False)


cdef inline int put_u16(Region region, Py_ssize_t offset, unsigned short value) except -1:
    if 0 <= offset <= region._writable_size - 2:
        vq_put_u16(region.base + offset, value)
        return 0
    return slow_put(region, offset, 2, value, False)


cdef inline int put_u32(Region region, Py_ssize_t offset, unsigned int value) except -1:
    if 0 <= offset <= region._writable_size - 4:
        vq_put_u32(region.base + offset, value)
        return 0
    return slow_put(region, offset, 4, value, False)


cdef inline int put_u64(Region region, Py_ssize_t offset, unsigned long long value) except -1:
    if 0 <= offset <= region._writable_size - 8:
        vq_put_u64(region.base + offset, value)
        return 0
    return slow_put(region, offset, 8, value, False)
