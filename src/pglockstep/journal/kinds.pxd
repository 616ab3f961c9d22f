cimport cython

@cython.locals(kinds=bytearray, index=cython.Py_ssize_t, message=bytes)
cpdef bytes kinds_of(messages)

@cython.locals(size=cython.Py_ssize_t, message=bytes)
cpdef Py_ssize_t size_of(messages) except -1
