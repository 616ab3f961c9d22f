# cython: language_level=3
"""Rows on their way from pgoutput's messages into COPY's text, no value of which becomes Python's.

The compiled half of `encoding.wire_text` and `encoding.wire_last`, which say what they promise. A message here is an Insert,
a Delete, or an Update that says nothing of the old row: in all of them one row follows the kind, the OID of the table, and
the kind of the row. What is anything else, or damaged, is left to the decoder.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdlib cimport free, malloc, realloc

cdef enum:
    # where the kind of the row stands, and the number of its columns
    _ROW_AT = 5
    _COUNT_AT = 6
    _VALUES_AT = 8


cdef struct Value:
    # what stands on the wire: its kind, and for a text its length and content
    const unsigned char *start
    const unsigned char *text
    Py_ssize_t length
    bint null


cdef Py_ssize_t _next(const unsigned char *data, Py_ssize_t at, Py_ssize_t size, Value *value) noexcept nogil:
    """Where the value at `at` ends; -1 if it is neither a text nor NULL, or cut short."""
    if at >= size:
        return -1
    value.start = data + at
    value.null = data[at] == b"n"
    if value.null:
        return at + 1
    if data[at] != b"t" or size - at < 5:
        return -1
    value.length = (
        <Py_ssize_t>data[at + 1] << 24 | data[at + 2] << 16 | data[at + 3] << 8 | data[at + 4]
    )
    value.text = data + at + 5
    return at + 5 + value.length if value.length <= size - at - 5 else -1


cdef bint _has_row(const unsigned char *data, Py_ssize_t size, Py_ssize_t width) noexcept nogil:
    """Whether there is a row of so many columns."""
    if size < _VALUES_AT or data[_ROW_AT] not in (b"N", b"K", b"O"):
        return False
    return (data[_COUNT_AT] << 8 | data[_COUNT_AT + 1]) == width


cdef unsigned char *_flags(Py_ssize_t width, columns) except NULL:
    """For each of so many columns whether it is wanted."""
    cdef Py_ssize_t index
    cdef unsigned char *wanted = <unsigned char *>malloc(width + 1)
    if wanted == NULL:
        raise MemoryError
    for index in range(width):
        wanted[index] = index in columns
    return wanted


def wire_text(list messages not None, Py_ssize_t width, columns):
    """None where something is not a whole row of texts."""
    cdef Py_ssize_t room = 1 << 16
    cdef Py_ssize_t size = 0
    cdef Py_ssize_t length
    cdef unsigned char *wanted = _flags(width, columns)
    cdef unsigned char *text = <unsigned char *>malloc(room)
    cdef unsigned char *larger
    cdef bytes message
    try:
        if text == NULL:
            raise MemoryError
        for message in messages:
            length = PyBytes_GET_SIZE(message)
            # a value is at most twice as long with its escapes, and a NULL three bytes with what ends the field
            if size + 2 * length + 3 * width + 1 > room:
                room = 2 * (size + 2 * length + 3 * width + 1)
                larger = <unsigned char *>realloc(text, room)
                if larger == NULL:
                    raise MemoryError
                text = larger
            length = _write_row(
                <const unsigned char *>PyBytes_AS_STRING(message), length, width, wanted, text + size
            )
            if length < 0:
                return None
            size += length
        return PyBytes_FromStringAndSize(<char *>text, size)
    finally:
        free(text)
        free(wanted)


cdef Py_ssize_t _write_row(
    const unsigned char *data, Py_ssize_t size, Py_ssize_t width, const unsigned char *wanted, unsigned char *text
) noexcept nogil:
    """Write the wanted columns of a row as a line; its length, or -1."""
    cdef unsigned char *to = text
    cdef Py_ssize_t at = _VALUES_AT
    cdef Py_ssize_t index
    cdef Value value
    cdef bint first = True
    if not _has_row(data, size, width):
        return -1
    for index in range(width):
        at = _next(data, at, size, &value)
        if at < 0:
            return -1
        if not wanted[index]:
            continue
        if not first:
            to[0] = b"\t"
            to += 1
        first = False
        to = _write(&value, to)
    if at != size:
        return -1
    to[0] = b"\n"
    return to + 1 - text


cdef unsigned char *_write(const Value *value, unsigned char *to) noexcept nogil:
    """Write a value, escaped; where it ends."""
    cdef Py_ssize_t index
    cdef unsigned char each
    if value.null:
        to[0], to[1] = b"\\", b"N"
        return to + 2
    for index in range(value.length):
        each = value.text[index]
        if each == b"\\" or each == b"\n" or each == b"\t" or each == b"\r":
            to[0] = b"\\"
            to += 1
            if each == b"\n":
                each = b"n"
            elif each == b"\t":
                each = b"t"
            elif each == b"\r":
                each = b"r"
        to[0] = each
        to += 1
    return to


def wire_values(list messages not None, Py_ssize_t width, columns):
    """None where something is not a whole row of texts."""
    cdef unsigned char *wanted = _flags(width, columns)
    cdef list found = []
    cdef bytes message
    try:
        for message in messages:
            values = _values(message, width, wanted)
            if values is None:
                return None
            found.append(values)
        return found
    finally:
        free(wanted)


cdef _values(bytes message, Py_ssize_t width, const unsigned char *wanted):
    """The wanted values of a row, in the order of its columns; None if it is not a whole row of texts."""
    cdef const unsigned char *data = <const unsigned char *>PyBytes_AS_STRING(message)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(message)
    cdef Py_ssize_t at = _VALUES_AT
    cdef Py_ssize_t index
    cdef Value value
    cdef list found = []
    if not _has_row(data, size, width):
        return None
    for index in range(width):
        at = _next(data, at, size, &value)
        if at < 0:
            return None
        if wanted[index]:
            found.append(
                None if value.null else PyBytes_FromStringAndSize(<const char *>value.text, value.length)
            )
    return tuple(found) if at == size else None


def wire_last(list messages not None, Py_ssize_t width, columns):
    """None where something is not a whole row of texts, or a key has a NULL."""
    cdef unsigned char *wanted = _flags(width, columns)
    cdef dict last = {}
    cdef bytes message
    try:
        for message in messages:
            key = _key(message, width, wanted, len(columns))
            if key is None:
                return None
            last[key] = message
        return list(last.values())
    finally:
        free(wanted)


cdef _key(bytes message, Py_ssize_t width, const unsigned char *wanted, Py_ssize_t left):
    """What stands on the wire of the wanted columns, one after the other: two keys share it only if they are the same."""
    cdef const unsigned char *data = <const unsigned char *>PyBytes_AS_STRING(message)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(message)
    cdef Py_ssize_t at = _VALUES_AT
    cdef Py_ssize_t index
    cdef Py_ssize_t length
    cdef Value value
    cdef bytes key = None
    if not _has_row(data, size, width):
        return None
    for index in range(width):
        at = _next(data, at, size, &value)
        if at < 0:
            return None
        if not wanted[index]:
            continue
        if value.null:
            return None
        length = value.length + 5
        if key is None:
            key = PyBytes_FromStringAndSize(<const char *>value.start, length)
        else:
            key += PyBytes_FromStringAndSize(<const char *>value.start, length)
        left -= 1
        if not left:
            return key
    return None
