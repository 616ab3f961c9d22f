"""Random messages of pgoutput: what the encoder and the decoder are held against."""

from __future__ import annotations

import string

from hypothesis import strategies as st

from pglockstep.wal.messages import (
    UNCHANGED,
    Begin,
    Binary,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Origin,
    Relation,
    RelationColumn,
    Row,
    Truncate,
    TypeName,
    Update,
    Value,
)

# --- random messages -------------------------------------------------------------------------------

u32 = st.integers(0, 2**32 - 1)
lsns = st.integers(0, 2**64 - 1)
times = st.integers(-(2**63), 2**63 - 1)
#: Quotes, percent signs, placeholders, line breaks, kinds of messages and all of Unicode; never empty.
names = st.text(
    st.sampled_from("\"'%$\\{}\n\t .;" + string.ascii_letters)
    | st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
    min_size=1,
    max_size=63,
)
values: st.SearchStrategy[Value] = st.one_of(
    st.none(), st.just(UNCHANGED), st.binary(max_size=80), st.builds(Binary, st.binary(max_size=80))
)
rows: st.SearchStrategy[Row] = st.lists(values, max_size=12).map(tuple)
columns = st.builds(RelationColumn, names, u32, st.integers(-(2**31), 2**31 - 1), st.booleans())

#: Every kind of message, by its letter.
by_kind: dict[str, st.SearchStrategy[Message]] = {
    "B": st.builds(Begin, lsns, times, u32),
    "C": st.builds(Commit, lsns, lsns, times),
    "O": st.builds(Origin, lsns, names),
    "R": st.builds(
        Relation, u32, names, names, st.sampled_from("dnfi"), st.lists(columns, max_size=8).map(tuple)
    ),
    "Y": st.builds(TypeName, u32, names, names),
    "I": st.builds(Insert, u32, rows),
    "U": st.builds(Update, u32, rows) | st.builds(Update, u32, rows, rows, st.booleans()),
    "D": st.builds(Delete, u32, rows, st.booleans()),
    "T": st.builds(Truncate, st.lists(u32, max_size=8).map(tuple), st.booleans(), st.booleans()),
    "M": st.builds(LogicalMessage, st.booleans(), lsns, names, st.binary(max_size=80)),
}
messages = st.one_of(*by_kind.values())
