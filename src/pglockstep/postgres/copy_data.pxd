cimport cython


@cython.locals(size=cython.Py_ssize_t, length=cython.Py_ssize_t)
cpdef Py_ssize_t take(receive, Py_ssize_t most, list messages) except? -1
