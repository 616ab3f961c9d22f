# cython: language_level=3
"""libpq's COPY without a detour over Python: the compiled half of `copy_data`, which says what it promises.

The functions are those of the libpq that psycopg has loaded; a connection is known by its address, as psycopg gives it.
While a loop runs over many messages others may run Python: a notice of the server's asks for its turn by itself.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy
from posix.unistd cimport read, usleep, write

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)
    short POLLIN
    short POLLOUT

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)

# a receiver pauses for so long where less than _MUCH has come, in microseconds: what comes in a moment is cheaper to take
# at once. It rings when so much waits, or after so many rounds; and ends when so many brought no more than a trickle
cdef enum:
    _PAUSE = 400
    _MUCH = 8 << 10
    _RING = 64 << 10
    _RING_AFTER = 5
    _LOOK_AFTER = 50
    _TRICKLE = 32 << 10

ctypedef int (*GetCopyData)(void *connection, char **buffer, int asynchronous) noexcept nogil
ctypedef int (*PutCopyData)(void *connection, const char *buffer, int length) noexcept nogil
ctypedef int (*OfConnection)(void *connection) noexcept nogil
ctypedef void (*FreeMemory)(void *buffer) noexcept nogil

cdef GetCopyData get_copy_data = NULL
cdef PutCopyData put_copy_data = NULL
cdef OfConnection consume_input = NULL
cdef OfConnection flush = NULL
cdef FreeMemory free_memory = NULL


def use(size_t get_at, size_t put_at, size_t consume_at, size_t flush_at, size_t free_at):
    """Call these functions from now on: their addresses."""
    global get_copy_data, put_copy_data, consume_input, flush, free_memory
    get_copy_data = <GetCopyData><void *>get_at
    put_copy_data = <PutCopyData><void *>put_at
    consume_input = <OfConnection><void *>consume_at
    flush = <OfConnection><void *>flush_at
    free_memory = <FreeMemory><void *>free_at


cdef struct Pile:
    # messages one after the other, and how long each is
    char *content
    size_t size
    size_t room
    unsigned int *lengths
    size_t count
    size_t counts


cdef bint _put_on(Pile *pile, const char *message, size_t length) noexcept nogil:
    """False where there is no memory."""
    cdef void *larger
    if pile.size + length > pile.room:
        pile.room = (pile.size + length) * 2
        larger = realloc(pile.content, pile.room)
        if larger == NULL:
            return False
        pile.content = <char *>larger
    if pile.count == pile.counts:
        pile.counts = pile.counts * 2 or 1024
        larger = realloc(pile.lengths, pile.counts * sizeof(unsigned int))
        if larger == NULL:
            return False
        pile.lengths = <unsigned int *>larger
    memcpy(pile.content + pile.size, message, length)
    pile.lengths[pile.count] = <unsigned int>length
    pile.size += length
    pile.count += 1
    return True


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


cdef class Receiver:
    """See `copy_data.Receiver`."""

    cdef void *connection
    cdef int heard
    cdef int bell
    cdef size_t most
    cdef Pile pile
    cdef pthread_mutex_t lock
    cdef bint rung
    cdef bint stopped
    #: whether `run` has ended
    cdef readonly bint ended

    def __cinit__(self, size_t connection, tuple bell not None, size_t most):
        self.connection = <void *>connection
        self.heard, self.bell = bell
        self.most = most
        pthread_mutex_init(&self.lock, NULL)
        _begin(&self.pile)

    def __dealloc__(self):
        free(self.pile.content)
        free(self.pile.lengths)
        pthread_mutex_destroy(&self.lock)

    def run(self):
        with nogil:
            self._run()
            self.ended = True
            self._ring()

    def take(self):
        cdef Pile full
        cdef Pile fresh
        cdef char rung[16]
        cdef size_t at = 0
        cdef size_t index
        cdef list messages = []
        _begin(&fresh)
        with nogil:
            pthread_mutex_lock(&self.lock)
            read(self.heard, rung, 16)
            full, self.pile = self.pile, fresh
            self.rung = False
            pthread_mutex_unlock(&self.lock)
        try:
            for index in range(full.count):
                messages.append(PyBytes_FromStringAndSize(full.content + at, full.lengths[index]))
                at += full.lengths[index]
        finally:
            free(full.content)
            free(full.lengths)
        return messages

    def hold(self):
        with nogil:
            pthread_mutex_lock(&self.lock)

    def release(self):
        pthread_mutex_unlock(&self.lock)

    def stop(self):
        self.stopped = True

    cdef void _run(self) noexcept nogil:
        cdef size_t before
        cdef size_t got
        cdef size_t lately = _TRICKLE
        cdef int rounds = 0
        cdef int waiting = 0
        cdef int how = 0
        while not self.stopped:
            pthread_mutex_lock(&self.lock)
            before = self.pile.size
            if before < self.most:
                how = _round(self.connection, &self.pile)
            got = self.pile.size - before
            if self.pile.size and not self.rung:
                waiting += 1
                if self.pile.size >= _RING or waiting >= _RING_AFTER:
                    waiting = 0
                    self.rung = True
                    self._ring()
            pthread_mutex_unlock(&self.lock)
            lately += got
            if how < 0:
                return
            if got >= _MUCH:
                continue
            rounds += 1
            if rounds == _LOOK_AFTER:
                # a reader that is behind is no sign of a source that has little
                if lately < _TRICKLE and before < self.most:
                    return
                rounds, lately = 0, 0
            usleep(_PAUSE)

    cdef void _ring(self) noexcept nogil:
        write(self.bell, "!", 1)


cdef void _begin(Pile *pile) noexcept nogil:
    pile.content, pile.lengths = NULL, NULL
    pile.size = pile.room = pile.count = pile.counts = 0


cdef int _round(void *connection, Pile *pile) noexcept nogil:
    """What libpq has, and what the socket has for it now. Negative at the end, or where there is no memory."""
    cdef int how = _empty(connection, pile)
    if how == 0:
        if not consume_input(connection):
            return -2
        how = _empty(connection, pile)
    return how


cdef int _empty(void *connection, Pile *pile) noexcept nogil:
    cdef char *buffer = NULL
    cdef int length
    cdef bint fits
    while True:
        length = get_copy_data(connection, &buffer, 1)
        if length <= 0:
            return length
        fits = _put_on(pile, buffer, length)
        free_memory(buffer)
        if not fits:
            return -3


def put(size_t connection, int socket, const unsigned char[::1] data not None, Py_ssize_t chunk):
    """See `copy_data.put`."""
    cdef const char *start = <const char *>&data[0] if data.shape[0] else NULL
    cdef Py_ssize_t size = data.shape[0]
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t length
    cdef int how
    with nogil:
        while at < size:
            length = min(chunk, size - at)
            how = put_copy_data(<void *>connection, start + at, <int>length)
            if how < 0:
                break
            if how > 0:
                at += length
            while True:
                how = flush(<void *>connection)
                if how <= 0:
                    break
                how = _wait(<void *>connection, socket)
                if how < 0:
                    break
            if how < 0:
                break
    return at == size and how == 0


cdef int _wait(void *connection, int socket) noexcept nogil:
    """Until there is room to write; what the server says meanwhile is taken, or it may never read on. -1 at its end."""
    cdef pollfd waiting
    waiting.fd = socket
    waiting.events = POLLIN | POLLOUT
    waiting.revents = 0
    if poll(&waiting, 1, -1) > 0 and waiting.revents & POLLIN and not consume_input(connection):
        return -1
    return 0


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
