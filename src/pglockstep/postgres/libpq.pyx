# cython: language_level=3
"""libpq's PQgetCopyData without a detour over Python: the compiled half of `copy_data`, which says what it promises.

The functions are those of the libpq that psycopg has loaded; a connection is known by its address, as psycopg gives it.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

ctypedef int (*GetCopyData)(void *connection, char **buffer, int asynchronous) noexcept
ctypedef void (*FreeMemory)(void *buffer) noexcept

cdef GetCopyData get_copy_data = NULL
cdef FreeMemory free_memory = NULL


def use(size_t get_copy_data_at, size_t free_memory_at):
    """Call these functions from now on: the addresses of PQgetCopyData and PQfreemem."""
    global get_copy_data, free_memory
    get_copy_data = <GetCopyData><void *>get_copy_data_at
    free_memory = <FreeMemory><void *>free_memory_at


def take(size_t connection, Py_ssize_t most, list messages not None):
    """See `copy_data.take`."""
    cdef Py_ssize_t size = 0
    cdef int length
    cdef char *buffer = NULL
    while size < most:
        length = get_copy_data(<void *>connection, &buffer, 1)
        if length <= 0:
            return size or length
        try:
            messages.append(PyBytes_FromStringAndSize(buffer, length))
        finally:
            free_memory(buffer)
        size += length
    return size


def gather(size_t connection, Py_ssize_t most):
    """See `copy_data.gather`."""
    cdef Py_ssize_t size = 0
    cdef Py_ssize_t room = most + 4096
    cdef int length = 1
    cdef char *buffer = NULL
    cdef char *into = <char *>malloc(room)
    cdef char *larger = NULL
    if into == NULL:
        raise MemoryError
    try:
        while size < most:
            length = get_copy_data(<void *>connection, &buffer, 1)
            if length <= 0:
                break
            if size + length > room:
                room = size + length
                larger = <char *>realloc(into, room)
                if larger == NULL:
                    free_memory(buffer)
                    raise MemoryError
                into = larger
            memcpy(into + size, buffer, length)
            free_memory(buffer)
            size += length
        return PyBytes_FromStringAndSize(into, size), length
    finally:
        free(into)
