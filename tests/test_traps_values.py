"""Every built-in type, with its hostile values, by copy and by stream: as a key, as a value, as an element, as NULL."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from fix_roads import each_alone, walk_both_roads
from fix_servers import Cli, Connection, Pair, all_pairs, connect, majors
from fix_types import BUILT_IN, OF_THE_SERVER, SETUP, Kind, kinds
from test_copy_rows import has_xml

pytestmark = pytest.mark.unguarded

#: What no index can order: such types are values, never keys.
NO_KEYS = {
    "json", "jsonpath", "xml", "point", "line", "lseg", "box", "path", "polygon", "circle", "xid", "cid",
    "txid_snapshot", "pg_snapshot", "refcursor", "aclitem", "jsons", "d_json",
}  # fmt: skip


def literal(value: str | None, kind: str) -> str:
    """`value` as SQL of this type."""
    if value is None:
        return f"NULL::{kind}"
    return "E'" + value.replace("\\", "\\\\").replace("'", "''") + f"'::{kind}"


def array(kind: str, *values: str | None) -> str:
    """An array of values as SQL; of an array type its first value, as there are no arrays of arrays."""
    if kind.endswith("[]"):
        return literal(values[0], kind)
    escaped = [
        '"' + each.replace("\\", "\\\\").replace('"', '\\"') + '"' if each is not None else "NULL"
        for each in values
    ]
    text = (";" if kind == "box" else ",").join(escaped)
    return literal("{" + text + "}", f"{kind}[]")


class Types:
    """Tables of every type on a source, and the writes that each of them has to stand."""

    def __init__(self, conn: Connection, offered: dict[str, Kind]) -> None:
        conn.execute(SETUP.encode())
        self.kinds = offered
        self.keyed: dict[str, str] = {}
        for number, (kind, here) in enumerate(offered.items()):
            one, other = [literal(value, kind) for value in (here.values * 2)[:2]]
            try:
                with conn.transaction():
                    conn.execute(
                        f"CREATE TABLE k{number} (v {kind} PRIMARY KEY, n int, w {kind}, a {kind}[])".encode()
                    )
                    # for some an index can be made, and then cannot hold two values
                    conn.execute(
                        f"INSERT INTO k{number} (v, w) VALUES ({one}, {one}), ({other}, {one}) ON CONFLICT DO NOTHING".encode()
                    )
            except (psycopg.errors.UndefinedObject, psycopg.errors.UndefinedFunction):
                continue
            conn.execute(
                f"CREATE TABLE i{number} (id int, v {kind} NOT NULL UNIQUE, n int, w {kind}, a {kind}[]);"
                f"ALTER TABLE i{number} REPLICA IDENTITY USING INDEX i{number}_v_key".encode()
            )
            self.keyed[kind] = str(number)
        columns = ", ".join(f"x{n} {kind}, y{n} {kind}[]" for n, kind in enumerate(offered))
        for name, key in (("plain", " PRIMARY KEY"), ("whole", " PRIMARY KEY"), ("bare", "")):
            conn.execute(f"CREATE TABLE {name} (id int{key}, {columns})".encode())
        conn.execute("ALTER TABLE whole REPLICA IDENTITY FULL")
        self.rows = max(len(kind.values + kind.alike) for kind in offered.values())

    def everything(self, conn: Connection) -> None:
        """Each kind of write of every type once; to be repeated as often as one likes."""
        for kind in self.keyed:
            each_alone(conn, self._keyed(kind))
        each_alone(conn, self._wide())

    def fill(self, conn: Connection) -> None:
        """What the copy is to carry: every value in every column."""
        with conn.transaction():
            for kind in self.keyed:
                each_alone(conn, self._filled(kind))
            each_alone(conn, self._rows())

    def _filled(self, kind: str) -> Iterator[str]:
        values = self.kinds[kind].values
        for at, each in enumerate(values):
            value = literal(each, kind)
            row = f"{value}, {at}, {value}, {array(kind, each, values[at - 1])}"
            yield f"INSERT INTO k{self.keyed[kind]} (v, n, w, a) VALUES ({row}) ON CONFLICT DO NOTHING"
            yield f"INSERT INTO i{self.keyed[kind]} (v, n, w, a) VALUES ({row}) ON CONFLICT DO NOTHING"

    def _keyed(self, kind: str) -> Iterator[str]:
        here = self.kinds[kind]
        values = [literal(value, kind) for value in here.values]
        alike = [literal(value, kind) for value in here.alike]
        nothing = f"NULL::{kind}" if here.nullable else values[0]
        for table in ("k", "i"):
            name = f"{table}{self.keyed[kind]}"
            yield from (each for each in self._filled(kind) if f" {name} " in each)
            elements = array(kind, here.values[0], None if here.nullable else here.values[0])
            for at, value in enumerate(values):
                is_it = f"v::text = {value}::text"
                yield f"UPDATE {name} SET n = coalesce(n, 0) + 1 WHERE {is_it}"
                yield f"UPDATE {name} SET w = {values[at - 1]}, a = {elements} WHERE {is_it}"
                yield f"UPDATE {name} SET w = {nothing}, a = NULL, n = NULL WHERE {is_it}"
                yield f"UPDATE {name} SET w = {value}, n = {at} WHERE {is_it}"
            first, last = values[0], values[-1]
            yield f"DELETE FROM {name} WHERE v::text = {last}::text"
            yield f"UPDATE {name} SET v = {last}, a = '{{}}' WHERE v::text = {first}::text"
            yield f"INSERT INTO {name} (v, n, w) VALUES ({first}, -1, {nothing}) ON CONFLICT DO NOTHING"
            for other in alike:
                # equal to a key, but another text: the row is the same, and the value is not
                yield f"UPDATE {name} SET v = {other}, n = 7 WHERE v = {other}"
                yield f"UPDATE {name} SET n = 8 WHERE v = {other}"
            for back in values if alike else ():
                yield f"UPDATE {name} SET v = {back} WHERE v = {back}"
            yield f"DELETE FROM {name} WHERE v::text = {first}::text"

    def _rows(self) -> Iterator[str]:
        for row in range(self.rows):
            every = [str(row)]
            for kind, here in self.kinds.items():
                values = here.values + here.alike
                at = row % len(values)
                every.append(literal(values[at], kind))
                every.append(array(kind, values[at], values[at - 1]))
            for table in ("plain", "whole", "bare", "bare"):
                yield f"INSERT INTO {table} VALUES ({', '.join(every)}) ON CONFLICT DO NOTHING"
        nothing = [
            each
            for kind, here in self.kinds.items()
            for each in ("NULL" if here.nullable else literal(here.values[0], kind), "NULL")
        ]
        for table in ("plain", "whole", "bare", "bare"):
            yield f"INSERT INTO {table} VALUES (-1, {', '.join(nothing)}) ON CONFLICT DO NOTHING"

    def _wide(self) -> Iterator[str]:
        for number, (kind, here) in enumerate(self.kinds.items()):
            values = [literal(each, kind) for each in here.values + here.alike]
            changes = [f"x{number} = {value}" for value in values]
            if here.nullable:
                changes.insert(len(changes) // 2, f"x{number} = NULL")
                changes.append(f"y{number} = {array(kind, here.values[0], None)}")
            changes += [f"y{number} = NULL", f"y{number} = '{{}}'"]
            for at, change in enumerate(changes):
                row = at % self.rows
                yield f"UPDATE plain SET {change} WHERE id = {row}"
                yield f"UPDATE whole SET {change} WHERE id = {row}"
                if at < 3 or here.alike:
                    yield f"UPDATE bare SET {change} WHERE ctid = (SELECT min(ctid) FROM bare WHERE id = {row})"
        for row in (-1, 0, 1):
            yield f"DELETE FROM plain WHERE id = {row}"
            yield f"DELETE FROM whole WHERE id = {row}"
            yield f"DELETE FROM bare WHERE ctid = (SELECT max(ctid) FROM bare WHERE id = {row})"
            yield f"UPDATE plain SET id = {row} WHERE id = 2"
            yield f"UPDATE plain SET id = 2 WHERE id = {row}"
        yield from self._rows()


@pytest.mark.parametrize(
    ("pair", "plain_roles"),
    [
        ((majors[0], majors[-1]), True),
        *(pytest.param(pair, False, marks=pytest.mark.soak) for pair in all_pairs),
    ],
    indirect=True,
)
def test_every_type_on_both_roads(pair: Pair, cli: Cli) -> None:
    """Inserted, updated, re-keyed and deleted: values of all types are the same text, whichever way they came."""
    offered = kinds(min(pair.source_server.major, pair.target_server.major))
    if not (has_xml(pair.source) and has_xml(pair.target)):
        del offered["xml"]
    with connect(pair.source) as source:
        types = Types(source, offered)
        assert set(offered) - set(types.keyed) == NO_KEYS & set(offered)
        types.fill(source)
    walk_both_roads(cli, pair, types.everything, rounds=3)


def test_no_built_in_type_is_forgotten(pair: Pair) -> None:
    """The server's own catalog has no type that users can store and that the test above does not know."""
    own = "typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm', 'e', 'd')"
    arrays = "SELECT typarray FROM pg_type"
    found = pair.on_source().execute(
        f"SELECT typname FROM pg_type WHERE {own} AND oid NOT IN ({arrays})".encode()
    )
    known = pair.on_source().execute(
        "SELECT DISTINCT typname FROM unnest(%s::regtype[]) AS r JOIN pg_type ON pg_type.oid = r",
        [list(BUILT_IN)],
    )
    assert {name for (name,) in found} - {name for (name,) in known} == OF_THE_SERVER


@pytest.mark.parametrize("kind", sorted(OF_THE_SERVER))
def test_what_only_the_server_fills(pair: Pair, kind: str) -> None:
    """No value of such a type can be put in, so none has to be carried."""
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        pair.on_source().execute(f"SELECT '1'::{kind}".encode())
