cimport cython

@cython.locals(lines=list, nulls=cython.Py_ssize_t, tabs=cython.Py_ssize_t, text=bytes)
cpdef bytes copy_text(rows)
