"""A schema with every kind of table that a stream finds hard, and a writer that never stands still."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg

from fix_servers import Connection

SCHEMA = '''
CREATE SCHEMA "Odd ""Names""";
CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s "fine"');
CREATE TABLE account (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email text UNIQUE, balance numeric NOT NULL DEFAULT 0, mood mood, doc jsonb, big text,
    doubled numeric GENERATED ALWAYS AS (balance * 2) STORED
);
CREATE TABLE entry (
    account bigint NOT NULL REFERENCES account ON DELETE CASCADE, at timestamptz NOT NULL DEFAULT clock_timestamp(),
    amount numeric
);
CREATE TABLE "Odd ""Names""".log (line text, n int, j json);  -- no key, with duplicates
CREATE TABLE spot (k text, n int, PRIMARY KEY (k, n), note text);
CREATE TABLE seat (id int PRIMARY KEY, place int NOT NULL UNIQUE DEFERRABLE INITIALLY IMMEDIATE);
CREATE TABLE part (id int, day date NOT NULL, v float8, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE part_old PARTITION OF part FOR VALUES FROM (MINVALUE) TO ('2020-01-01');
CREATE TABLE part_new PARTITION OF part FOR VALUES FROM ('2020-01-01') TO (MAXVALUE);
CREATE TABLE scrap (id serial PRIMARY KEY, v text);
INSERT INTO account (email, balance, big) SELECT 'a' || n, n, repeat(md5(n::text), 400) FROM generate_series(1, 200) AS n;
INSERT INTO seat SELECT n, n FROM generate_series(1, 50) AS n;
INSERT INTO part SELECT n, date '2019-12-01' + n, n / 3.0 FROM generate_series(1, 60) AS n;
INSERT INTO "Odd ""Names""".log SELECT 'same', 1, '{"a": 1}' FROM generate_series(1, 20);
INSERT INTO spot SELECT 'k' || n, n, NULL FROM generate_series(1, 100) AS n;
'''

_LOG = '"Odd ""Names""".log'

#: Each is one transaction; {r} is a random number.
_TRANSACTIONS: list[list[str]] = [
    ["INSERT INTO account (email, balance, mood) VALUES ('n' || clock_timestamp(), {r}, 'sad')"],
    ["UPDATE account SET balance = balance + 1 WHERE id = 1 + {r} % 150"],
    ["UPDATE account SET big = repeat('x{r}', 3000), doc = '{{\"a\": {r}}}' WHERE id = 1 + {r} % 150"],
    ["UPDATE account SET mood = NULL, email = NULL WHERE id = 1 + {r} % 150"],
    ["UPDATE account SET email = '' WHERE id = 151"],
    ["UPDATE account SET id = DEFAULT WHERE id = (SELECT max(id) FROM account)"],
    ["INSERT INTO entry (account, amount) SELECT id, {r} FROM account ORDER BY id LIMIT 20"],
    ["DELETE FROM account WHERE id = (SELECT max(id) FROM account WHERE id > 160)"],
    [f"INSERT INTO {_LOG} VALUES ('same', {{r}} % 3, '{{{{\"b\": 1}}}}')"] * 3,
    [f"UPDATE {_LOG} SET n = n + 1 WHERE ctid = (SELECT min(ctid) FROM {_LOG})"],
    [f"DELETE FROM {_LOG} WHERE ctid = (SELECT max(ctid) FROM {_LOG})"],
    ["UPDATE spot SET n = n + 1000, note = 'moved' WHERE k = 'k' || (1 + {r} % 100)"],
    [
        "UPDATE seat SET place = CASE id WHEN 1 THEN 2 ELSE 1 END WHERE id IN (1, 2) AND place IN (1, 2) AND {r} < 0"
    ],
    [
        "SET CONSTRAINTS ALL DEFERRED",
        "UPDATE seat SET place = -place WHERE id < 9",
        "UPDATE seat SET place = -place WHERE id < 9",
    ],
    [
        "UPDATE part SET day = day + 400 WHERE id = 1 + {r} % 60",
        "UPDATE part SET day = day - 400 WHERE day > '2020-12-01'",
    ],
    ["INSERT INTO scrap (v) SELECT 's' FROM generate_series(1, 30)"],
    [
        "SAVEPOINT a",
        "INSERT INTO scrap (v) VALUES ('never')",
        "ROLLBACK TO a",
        "INSERT INTO scrap (v) VALUES ('once')",
    ],
    ["TRUNCATE scrap RESTART IDENTITY", "INSERT INTO scrap (v) VALUES ('first')"],
    [
        "DELETE FROM entry",
        "INSERT INTO entry (account, amount) SELECT 2, n FROM generate_series(1, 40) AS n",
    ],
]


#: What two writers do to each other now and then.
_PASSING = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.IntegrityError,
    # "tuple concurrently updated": two TRUNCATE … RESTART IDENTITY of one table
    psycopg.errors.InternalError_,
)


def one_transaction(conn: Connection, chance: random.Random) -> None:
    """Run one random transaction."""
    with conn.transaction():
        for statement in chance.choice(_TRANSACTIONS):
            conn.execute(statement.format(r=chance.randrange(1000)).encode())


@contextmanager
def writing(
    work: Callable[[Connection, int], None], conninfo: str, writers: int, pause: float
) -> Iterator[None]:
    """Have several sessions do `work` again and again until the block ends; any failure of one fails the test."""
    stop = threading.Event()
    failures: list[Exception] = []

    def write(number: int) -> None:
        try:
            with psycopg.connect(conninfo, autocommit=True) as conn:
                while not stop.wait(pause):
                    work(conn, number)
        except Exception as error:
            failures.append(error)

    threads = [
        threading.Thread(target=write, args=[number], name=f"writer {number}") for number in range(writers)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[0]


@contextmanager
def workload(conninfo: str, *, writers: int = 2, pause: float = 0.008, seed: int = 0) -> Iterator[None]:
    """Write at random from several sessions until the block ends."""
    chances = [random.Random(seed * 100 + number) for number in range(writers)]

    def work(conn: Connection, number: int) -> None:
        with suppress(*_PASSING):
            one_transaction(conn, chances[number])

    with writing(work, conninfo, writers, pause):
        yield
