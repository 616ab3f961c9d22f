cimport cython

ctypedef const unsigned char* view_t

cdef int _INSERT, _UPDATE, _DELETE
cdef int _NEW, _KEY, _OLD
cdef int _NULL, _TOAST, _TEXT, _BINARY

@cython.locals(kind=cython.int)
cpdef decode(bytes data)

cdef unsigned int _u32(bytes data, Py_ssize_t position) except? 0xFFFFFFFF

cdef _end(bytes data, Py_ssize_t position)

@cython.locals(
    count=cython.int,
    index=cython.Py_ssize_t,
    kind=cython.int,
    length=cython.uint,
    size=cython.Py_ssize_t,
    view=view_t,
    values=list,
    partial=cython.bint,
)
cdef tuple _row(bytes data, Py_ssize_t position)

cdef _decode_insert(bytes data)

@cython.locals(kind=cython.int)
cdef _decode_update(bytes data)

@cython.locals(kind=cython.int)
cdef _decode_delete(bytes data)
