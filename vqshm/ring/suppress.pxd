# C signature; the code is suppress.py.

cpdef bint need_event(Py_ssize_t event, Py_ssize_t new, Py_ssize_t old) noexcept
