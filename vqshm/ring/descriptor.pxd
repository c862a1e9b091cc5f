# C layout of the descriptor record; the code is descriptor.py.

cdef class Descriptor:
    cdef public unsigned long long addr
    cdef public unsigned int len
    cdef public unsigned short flags
    cdef public unsigned short next
