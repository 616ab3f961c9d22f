cimport cython

ctypedef const unsigned char* view_t

cdef int _DATA, _HEADER

@cython.locals(carried=list, others=list, frame=bytes, size=cython.Py_ssize_t, view=view_t)
cpdef payloads(frames)
