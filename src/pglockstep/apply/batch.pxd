cimport cython

from pglockstep.apply.runs cimport Batch, Run


cdef int _EACH
cdef int _INSERT, _UPDATE, _DELETE, _RELATION, _BEGIN
cdef int _OID


cdef class BatchBuilder:
    cdef object _link
    cdef object _copied
    cdef object _table_of
    cdef object _gate
    cdef object _keeping
    cdef object _begun
    cdef object _ending
    cdef Batch _held
    cdef bint _large
    cdef readonly bint held
    cdef dict _announced
    cdef dict _writers
    cdef object _sealed
    cdef Batch _ready
    cdef Batch _current
    cdef dict _runs
    cdef object _final_lsn
    cdef bint _leave_out
    cdef Py_ssize_t _most
    cdef readonly object position
    cdef readonly bint in_transaction
    cdef public bint one_by_one
    cdef public object cut
    cdef public bint at_cut

    @cython.locals(index=cython.Py_ssize_t, data=bytes, size=cython.Py_ssize_t, kind=cython.int)
    cpdef Py_ssize_t feed(self, payloads, Py_ssize_t start=*) except -1

    cpdef take(self, message, Py_ssize_t size)

    @cython.locals(run=Run, relation_id=cython.uint)
    cdef _sent(self, bytes data, int kind, Py_ssize_t size)

    @cython.locals(run=Run)
    cdef _change(self, change, Py_ssize_t size)

    @cython.locals(current=Batch)
    cdef _grew(self, Py_ssize_t size)

    cdef _begin(self, message)
    cdef _part(self)

    @cython.locals(run=Run)
    cdef Run _start_run(self, relation_id)

    cdef bint _holds(self, writer) except -1
    cdef _writer(self, relation_id)
    cdef _truncate(self, message)

    cdef _end(self, message)

    @cython.locals(done=Batch, passes=cython.bint, large=cython.bint)
    cdef _close(self, message)

    cdef _complete(self, Batch done)
    cdef _hold(self, Batch batch)

    @cython.locals(held=Batch)
    cpdef release(self)
