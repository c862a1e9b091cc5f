# C signature; the code is suppress.py.

cpdef bint need_event(int event, int new, int old)
