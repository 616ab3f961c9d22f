cimport cython


@cython.locals(inserted=dict, updated=dict, origins=dict, left=set, deleted=dict)
cdef _by_key(changes, key)

@cython.locals(added=dict, removed=dict)
cdef _by_row(changes)

cdef _move(row, dict out_of, dict into)
cdef _demand_free(key, dict inserted, dict updated)
cdef _whole(row)
cdef _key_filled(new, old, key)
cdef bint _names_nothing(key) except -1
cdef _merged(before, new)
