"""What `check` says of large objects, which are compared, and of materialised views, of which only whether they are filled."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import shlex
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from fix_copy import check, once
from fix_servers import INSTALLED, Cli, Connection, Pair, drop_database, majors, on_all_pairs
from pglockstep.compare import large_objects
from pglockstep.compare.large_objects import LargeObjects
from pglockstep.postgres.connect import End, connect
from test_run import daemon

PIECE = 1 << 20

Advance = Callable[[], Awaitable[None]]


def compared(pair: Pair, advance: Advance | None = None) -> LargeObjects:
    async def comparing() -> LargeObjects:
        ends = End("source", "test", pair.source), End("target", "test", pair.target)
        async with await connect(ends[0], "test") as source, await connect(ends[1], "test") as target:
            return await large_objects.compare(source, target, ends, advance)

    return asyncio.run(comparing())


def make(conn: Connection, objects: Mapping[int, bytes]) -> None:
    with conn.cursor() as cursor:
        cursor.executemany("SELECT lo_from_bytea(%s, %s)", list(objects.items()))


def forget(conn: Connection) -> None:
    conn.execute("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")


SAME = {
    1: b"",
    70001: b"x",
    70002: b"\0" * (PIECE - 1),
    70003: b"a" * PIECE,
    70004: b"a" * (PIECE + 1),
    70005: bytes(range(256)) * 4096 * 3,
    4294967290: b"last",
}


@on_all_pairs
def test_the_same_objects_are_the_same_on_every_version(pair: Pair) -> None:
    """Empty ones, ones of a piece or several, one with a hole that the other end has written as zeros."""
    source, target = pair.on_source(), pair.on_target()
    make(source, SAME | {70006: b"\0" * 3_000_000 + b"end"})
    make(target, SAME)
    target.execute("SELECT lo_create(70006), lo_put(70006, 3000000, 'end')")
    assert compared(pair) == LargeObjects(len(SAME) + 1, len(SAME) + 1)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ({5: b"a"}, {}, LargeObjects(1, 0, missing=1, first=(5,))),
        ({}, {5: b""}, LargeObjects(0, 1, extra=1, first=(5,))),
        ({5: b""}, {5: b"\0"}, LargeObjects(1, 1, changed=1, first=(5,))),
        ({5: b"a"}, {6: b"a"}, LargeObjects(1, 1, missing=1, extra=1, first=(5, 6))),
        ({5: b"a" * PIECE}, {5: b"a" * PIECE + b"\0"}, LargeObjects(1, 1, changed=1, first=(5,))),
        ({5: b"a" * PIECE * 2}, {5: b"a" * PIECE}, LargeObjects(1, 1, changed=1, first=(5,))),
        ({5: b"ab" * PIECE + b"1"}, {5: b"ab" * PIECE + b"2"}, LargeObjects(1, 1, changed=1, first=(5,))),
        (
            {5: b"a" * PIECE + b"b" * PIECE},
            {5: b"b" * PIECE + b"a" * PIECE},
            LargeObjects(1, 1, changed=1, first=(5,)),
        ),
        (
            {5: b"a" * PIECE + b"end"},
            {5: hashlib.sha256(b"a" * PIECE).digest() + b"end"},
            LargeObjects(1, 1, changed=1, first=(5,)),
        ),
    ],
    ids=[
        "missing",
        "extra",
        "a byte",
        "other OID",
        "a zero more",
        "a piece less",
        "the last byte",
        "pieces swapped",
        "the first hash",
    ],
)
def test_a_difference_is_found_and_counted(
    pair: Pair, source: dict[int, bytes], target: dict[int, bytes], expected: LargeObjects
) -> None:
    """Wherever it is, and with the OID."""
    make(pair.on_source(), source)
    make(pair.on_target(), target)
    found = compared(pair)
    assert found == expected
    assert found.differ


def test_any_number_of_objects_is_matched_as_it_comes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is missing where, in however many steps it is read: the numbers are those of the truth."""
    monkeypatch.setattr(large_objects, "_AT_ONCE", 7)
    chosen = random.Random(6)
    for gaps in (0.5, 0.03, 0.97):
        ends: list[dict[int, bytes]] = [
            {oid: chosen.choice([b"a", b"b"]) for oid in range(100, 300) if chosen.random() > gaps}
            for _ in "st"
        ]
        source, target = ends
        for conn, objects in ((pair.on_source(), source), (pair.on_target(), target)):
            make(conn, objects)
        different = sorted(oid for oid in {*source, *target} if source.get(oid) != target.get(oid))
        expected = LargeObjects(
            source=len(source),
            target=len(target),
            missing=len(source.keys() - target.keys()),
            extra=len(target.keys() - source.keys()),
            changed=sum(source[oid] != target[oid] for oid in source.keys() & target.keys()),
            first=tuple(different[:20]),
        )
        assert compared(pair) == expected

        async def nothing() -> None:
            """Nobody changes anything."""

        assert compared(pair, nothing) == expected
        monkeypatch.setattr(large_objects, "_READ_AGAIN", 3)
        few = compared(pair, nothing)
        assert (few.missing, few.extra, few.changed) == (expected.missing, expected.extra, expected.changed)
        monkeypatch.undo()
        monkeypatch.setattr(large_objects, "_AT_ONCE", 7)
        for conn in (pair.on_source(), pair.on_target()):
            forget(conn)


def test_an_object_larger_than_a_value_can_be(pair: Pair) -> None:
    """1.1 GB, nearly all of it a hole: no value of that size could be made, and none is."""
    size = 1_100_000_000
    for conn, end in ((pair.on_source(), "1"), (pair.on_target(), "2")):
        with conn.transaction():
            conn.execute("SELECT lo_create(9)")
            conn.execute("SELECT lo_lseek64(lo_open(9, 131072), %s::bigint, 0), lowrite(0, %s)", [size, end])
    assert compared(pair) == LargeObjects(1, 1, changed=1, first=(9,))


# --- while they are in use -------------------------------------------------------------------------


def test_what_comes_level_meanwhile_is_no_difference(pair: Pair) -> None:
    """An object that was there for a moment only, and one that was written on one end before the other."""
    source, target = pair.on_source(), pair.on_target()
    make(source, {5: b"new", 6: b"passing"})
    make(target, {5: b"old"})

    async def advance() -> None:
        target.execute("SELECT lo_put(5, 0, 'new')")
        source.execute("SELECT lo_unlink(6)")

    found = compared(pair, advance)
    assert (found.differ, found.known) == (False, True)


def test_what_never_stands_still_on_the_source_differs_all_the_same(pair: Pair) -> None:
    """The target's stands still, and is none of those that the source's was."""
    source = pair.on_source()
    make(source, {5: b"0"})
    make(pair.on_target(), {5: b"old"})
    rounds = iter(range(1, 100))

    async def advance() -> None:
        source.execute("SELECT lo_put(5, 0, %s::text::bytea)", [str(next(rounds))])

    assert compared(pair, advance) == LargeObjects(1, 1, changed=1, first=(5,))


def test_what_moves_on_both_ends_is_not_known(pair: Pair) -> None:
    """Both change between any two readings: that they never agreed proves nothing."""
    source, target = pair.on_source(), pair.on_target()
    make(source, {5: b"s0"})
    make(target, {5: b"t0"})
    rounds = iter(range(1, 100))

    async def advance() -> None:
        number = next(rounds)
        source.execute("SELECT lo_put(5, 0, %s::text::bytea)", [f"s{number}"])
        target.execute("SELECT lo_put(5, 0, %s::text::bytea)", [f"t{number}"])

    found = compared(pair, advance)
    assert found == LargeObjects(1, 1, settled=False)
    assert not found.known


# --- the command -----------------------------------------------------------------------------------


@pytest.mark.parametrize("plain_roles", [True], indirect=True, ids=["plain"])
def test_objects_that_a_role_may_not_read_are_named_and_leave_no_proof(pair: Pair, cli: Cli) -> None:
    """They are on both ends, and nobody can tell whether they are the same: not identical, and not different either."""
    pair.on_source().execute("CREATE TABLE t (id int PRIMARY KEY)")
    once(cli, pair)
    for conn in (pair.superuser_on_source(), pair.superuser_on_target()):
        make(conn, {5: b"secret", 6: b"open"})
        conn.execute("GRANT SELECT ON LARGE OBJECT 6 TO PUBLIC")
    found = check(cli, pair, 7)
    assert found["verdict"] == "inconclusive"
    assert (found["large_objects"]["unread"], found["large_objects"]["changed"]) == (1, 0)
    said = cli("check", "--source", pair.source, "--target", pair.target).stdout
    assert "note: 1 large objects are not compared: on one end our role may not read them" in said
    pair.superuser_on_target().execute("SELECT lo_put(6, 0, 'OPEN')")
    assert check(cli, pair, 1)["large_objects"]["changed"] == 1


def changed_on_the_source(pair: Pair) -> None:
    source = pair.on_source()
    source.execute("SELECT lo_put(50001, 0, 'ONE'), lo_unlink(50002), lo_from_bytea(50003, 'three')")
    source.execute("INSERT INTO t VALUES (3, 50003)")


def demand_different(cli: Cli, pair: Pair) -> None:
    link = check(cli, pair, 1)
    assert link["verdict"] == "different"
    assert [each["verdict"] for each in link["tables"]] == ["identical"]
    assert link["large_objects"] == {
        **{"source": 2, "target": 2, "missing": 1, "extra": 1, "changed": 1, "unread": 0},
        **{"first": [50001, 50002, 50003], "settled": True},
    }
    said = cli("check", "--source", pair.source, "--target", pair.target).stdout
    assert "large objects: 1 missing on the target, 1 extra, 1 changed (50001, 50002, 50003)" in said
    assert "note: large objects come level with a new copy: `pglockstep teardown`, an empty database" in said


@on_all_pairs
def test_objects_that_differ_are_different_until_they_are_carried_by_hand(
    pair: Pair, cli: Cli, tmp_path: Path
) -> None:
    """Beside a daemon, which does not carry them; with the commands that the documentation gives they come level."""
    make(pair.on_source(), {50001: b"one", 50002: b"two"})
    pair.on_source().execute("CREATE TABLE t (id int PRIMARY KEY, o oid); INSERT INTO t VALUES (1, 50001)")
    assert once(cli, pair)["verdict"] == "identical"
    with daemon(cli, pair):
        changed_on_the_source(pair)
        demand_different(cli, pair)
        bindir = INSTALLED[majors[-1]].bindir
        script = f"""
            cd {shlex.quote(str(tmp_path))}
            PATH={shlex.quote(str(bindir))}:$PATH
            pg_dump -d "$SOURCE" -Fc --exclude-table-data='*.*' -f objects.dump
            pg_restore -l objects.dump | grep BLOB > objects.list
            pg_restore -d "$TARGET" --no-owner --no-acl --clean --if-exists -L objects.list objects.dump
            psql -X -d "$TARGET" -c 'SELECT lo_unlink(50002)'
        """
        subprocess.run(["sh", "-c", script], env={"SOURCE": pair.source, "TARGET": pair.target}, check=True)
        assert check(cli, pair)["verdict"] == "identical"
    for conn in (pair.on_source(), pair.on_target()):
        forget(conn)


def test_a_new_copy_brings_them_level(pair: Pair, cli: Cli) -> None:
    """`teardown`, an empty database in the target's place, and `once`."""
    ends = ("--source", pair.source, "--target", pair.target)
    make(pair.on_source(), {50001: b"one", 50002: b"two"})
    pair.on_source().execute("CREATE TABLE t (id int PRIMARY KEY, o oid)")
    once(cli, pair)
    changed_on_the_source(pair)
    assert once(cli, pair, 1)["verdict"] == "different"
    assert cli("teardown", *ends, "--yes").returncode == 0
    done = cli("once", *ends)
    assert done.returncode == 5
    assert "not empty and not ours" in done.stderr
    with pair.on_target() as target:
        name, owner = target.info.dbname, target.info.user
    drop_database(pair.target_server, name)
    with psycopg.connect(pair.target_server.conninfo(), autocommit=True) as server:
        server.execute(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(owner))
        )
    assert once(cli, pair)["verdict"] == "identical"


# --- materialised views ----------------------------------------------------------------------------


def test_a_view_that_is_filled_on_the_source_alone_is_named(pair: Pair, cli: Cli) -> None:
    """What a filled one holds is not compared; one that would refuse every query on the target is told, and no more."""
    source, target = pair.on_source(), pair.on_target()
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE MATERIALIZED VIEW filled AS SELECT * FROM t;"
        'CREATE MATERIALIZED VIEW "Empty" AS SELECT * FROM t WITH NO DATA'
    )
    assert once(cli, pair)["not_populated"] == []
    source.execute("INSERT INTO t VALUES (1); REFRESH MATERIALIZED VIEW filled")
    assert once(cli, pair)["not_populated"] == []
    target.execute('REFRESH MATERIALIZED VIEW "Empty"')
    assert check(cli, pair)["not_populated"] == []
    target.execute("REFRESH MATERIALIZED VIEW filled WITH NO DATA")
    source.execute('REFRESH MATERIALIZED VIEW "Empty"')
    link = check(cli, pair)
    assert (link["verdict"], link["not_populated"]) == ("identical", ["materialized view public.filled"])
    ends = ("--source", pair.source, "--target", pair.target)
    said = cli("check", *ends).stdout
    assert (
        "note: materialized view public.filled is filled on the source, and empty on the target: REFRESH materialized"
        in said
    )
    source.execute("DROP MATERIALIZED VIEW filled")
    done = cli("check", *ends, "--json")
    assert json.loads(done.stdout)["links"][0]["not_populated"] == []
    # left out of the link, left out of the notes
    source.execute("CREATE MATERIALIZED VIEW filled AS SELECT * FROM t")
    (cli.directory / "some.toml").write_text(
        f"[links.default]\nsource = {json.dumps(pair.source)}\ntarget = {json.dumps(pair.target)}\n"
        "exclude = ['public.filled']\n"
    )
    done = cli("check", "-c", "some.toml", "--json")
    assert json.loads(done.stdout)["links"][0]["not_populated"] == []
