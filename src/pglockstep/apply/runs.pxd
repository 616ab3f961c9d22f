cimport cython


cdef int _INSERT, _DELETE
cdef int _OID, _NEW


cdef class Run:
    cdef readonly object writer
    cdef readonly list rows
    cdef list _changes
    cdef readonly Py_ssize_t inserted
    cdef readonly Py_ssize_t updated
    cdef readonly Py_ssize_t deleted

    @cython.locals(before=cython.Py_ssize_t, alike=cython.bint)
    cpdef take(self, bytes data, int kind)
    cpdef put(self, change)
    cpdef add(self, Run later)


cdef class Batch:
    cdef public list steps
    cdef public Py_ssize_t size
    cdef public Py_ssize_t transactions
    cdef public object commit
    cdef public object upto
    cdef public bint carry

    cpdef add(self, Batch later)


@cython.locals(before=Run, run=Run)
cdef bint _joined(ours, theirs) except -1
