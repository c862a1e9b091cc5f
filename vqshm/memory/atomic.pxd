# The compiled body of vqshm.memory.atomic: C atomics on raw memory, inlined into every module that cimports it.
# One bounds check stands in front of each access; what fails it takes the slow road, which raises or knows better.
#
# A Region is an object, and passing one on costs a count up and a count down each time; the rings pass on its Span.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.string cimport memcpy, memset

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
    bint VQ_LIKELY(bint) noexcept


cdef extern from *:
    """#define VQ_INTERRUPTIBLE 0"""
    bint INTERRUPTIBLE "VQ_INTERRUPTIBLE"  # compiled, nothing strikes between two steps, and no step is taken for that


cdef struct Hold:  # a Py_buffer that Cython does not show to the cycle collector; why: see Region in atomic.pyx
    Py_buffer buffer


cdef struct Span:  # a Region without a reference to it, for whoever holds that; all 0: no access can pass the check
    unsigned char* base
    size_t end16, end32, end64  # the first offset at which so many bits do not lie in the window; 0 if it is read-only
    Py_ssize_t size  # likewise
    PyObject* region


cdef class Region:
    cdef unsigned char* base
    cdef readonly Py_ssize_t size
    cdef readonly bint readonly
    cdef readonly object beyond
    cdef Span span
    cdef Hold _hold
    cdef bint _held
    cdef object _keep


# The slow roads take the address of the Region alone: to pass on a Span, the fast road would have to store it first.
cdef Py_ssize_t slow_count(object data) except -1
cdef int slow_fill(PyObject* window, Py_ssize_t offset, object data, Py_ssize_t count) except -1
cdef bytes slow_copy(PyObject* window, Py_ssize_t offset, Py_ssize_t count)
cdef unsigned long long slow_get(PyObject* window, Py_ssize_t offset, int width, bint ordered) except? 0xFFFFFFFFFFFFFFFF
cdef int slow_put(PyObject* window, Py_ssize_t offset, int width, unsigned long long value, bint ordered) except -1
cdef Region window_of(PyObject* window)


cdef inline Region region_of(Span span):
    return window_of(span.region)


cdef inline Span span_of(Region region) noexcept:
    cdef Span nothing
    if region is None:
        memset(&nothing, 0, sizeof(Span))
        return nothing
    return region.span


cdef inline Py_ssize_t count_of(object data) except -1:
    if PyBytes_CheckExact(data):
        return PyBytes_GET_SIZE(data)
    return slow_count(data)


cdef inline int fill(Span span, Py_ssize_t offset, object data, Py_ssize_t count) except -1:
    if PyBytes_CheckExact(data) and PyBytes_GET_SIZE(data) == count and 0 <= offset <= span.size - count:
        memcpy(span.base + offset, PyBytes_AS_STRING(data), count)
        return 0
    return slow_fill(span.region, offset, data, count)


cdef inline bytes copy(Span span, Py_ssize_t offset, Py_ssize_t count):
    if count < 0 or offset < 0 or offset > span.size - count:
        return slow_copy(span.region, offset, count)
    return PyBytes_FromStringAndSize(<char*>span.base + offset, count)


cdef inline int fence() except -1:
    vq_fence()
    return 0


cdef inline Py_ssize_t load_u16(Span span, Py_ssize_t offset) except -1:
    if VQ_LIKELY(<size_t>offset < span.end16):
        return vq_load_u16(span.base + offset)
    return <Py_ssize_t>slow_get(span.region, offset, 2, True)


cdef inline long long load_u32(Span span, Py_ssize_t offset) except -1:
    if VQ_LIKELY(<size_t>offset < span.end32):
        return vq_load_u32(span.base + offset)
    return <long long>slow_get(span.region, offset, 4, True)


cdef inline unsigned long long load_u64(Span span, Py_ssize_t offset) except? 0xFFFFFFFFFFFFFFFF:
    if VQ_LIKELY(<size_t>offset < span.end64):
        return vq_load_u64(span.base + offset)
    return slow_get(span.region, offset, 8, True)


cdef inline int store_u16(Span span, Py_ssize_t offset, unsigned short value) except -1:
    if VQ_LIKELY(<size_t>offset < span.end16):
        vq_store_u16(span.base + offset, value)
        return 0
    return slow_put(span.region, offset, 2, value, True)


cdef inline int store_u32(Span span, Py_ssize_t offset, unsigned int value) except -1:
    if VQ_LIKELY(<size_t>offset < span.end32):
        vq_store_u32(span.base + offset, value)
        return 0
    return slow_put(span.region, offset, 4, value, True)


cdef inline int store_u64(Span span, Py_ssize_t offset, unsigned long long value) except -1:
    if VQ_LIKELY(<size_t>offset < span.end64):
        vq_store_u64(span.base + offset, value)
        return 0
    return slow_put(span.region, offset, 8, value, True)


cdef inline Py_ssize_t get_u16(Span span, Py_ssize_t offset) except -1:
    if VQ_LIKELY(<size_t>offset < span.end16):
        return vq_get_u16(span.base + offset)
    return <Py_ssize_t>slow_get(span.region, offset, 2, False)


cdef inline long long get_u32(Span span, Py_ssize_t offset) except -1:
    if VQ_LIKELY(<size_t>offset < span.end32):
        return vq_get_u32(span.base + offset)
    return <long long>slow_get(span.region, offset, 4, False)


cdef inline unsigned long long get_u64(Span span, Py_ssize_t offset) except? 0xFFFFFFFFFFFFFFFF:
    if VQ_LIKELY(<size_t>offset < span.end64):
        return vq_get_u64(span.base + offset)
    return slow_get(span.region, offset, 8, False)


cdef inline int put_u16(Span span, Py_ssize_t offset, unsigned short value) except -1:
    if VQ_LIKELY(<size_t>offset < span.end16):
        vq_put_u16(span.base + offset, value)
        return 0
    return slow_put(span.region, offset, 2, value, False)


cdef inline int put_u32(Span span, Py_ssize_t offset, unsigned int value) except -1:
    if VQ_LIKELY(<size_t>offset < span.end32):
        vq_put_u32(span.base + offset, value)
        return 0
    return slow_put(span.region, offset, 4, value, False)


cdef inline int put_u64(Span span, Py_ssize_t offset, unsigned long long value) except -1:
    if VQ_LIKELY(<size_t>offset < span.end64):
        vq_put_u64(span.base + offset, value)
        return 0
    return slow_put(span.region, offset, 8, value, False)
