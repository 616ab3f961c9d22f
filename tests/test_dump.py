"""What pg_restore writes, made fit for a server: only the script's own frame is touched."""

from __future__ import annotations

import pytest

from pglockstep.postgres.dump import plain_sql, statements

BODY = rb"""
CREATE FUNCTION public.f() RETURNS void LANGUAGE plpgsql AS $$
-- a
SET transaction_timeout = 0;
SET lock_timeout = 0;
\restrict token
\unrestrict token
$$;

"""
HEAD = b"""--
-- PostgreSQL database dump
--

%s-- Dumped from database version 18.4

SET statement_timeout = 0;
SET lock_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SELECT pg_catalog.set_config('search_path', '', false);
SET row_security = off;
"""
TAIL = b"--\n-- PostgreSQL database dump complete\n--\n\n"


@pytest.mark.parametrize("token", [b"token", b"0aB", None])
@pytest.mark.parametrize("major", [15, 16, 17, 18])
def test_only_the_frame_is_touched(token: bytes | None, major: int) -> None:
    """The frame loses what psql alone, or a newer server, understands; the same words in a body stay."""
    opening = b"\\restrict " + token + b"\n\n" if token else b""
    closing = b"\\unrestrict " + token + b"\n\n" if token else b""
    made = plain_sql(HEAD % opening + BODY + TAIL + closing, major)
    assert made.count(BODY) == 1
    frame = made.replace(BODY, b"")
    assert b"restrict" not in frame
    assert b"lock_timeout" not in frame
    assert (b"transaction_timeout" in frame) == (major >= 17)
    assert b"SET row_security = off;" in frame
    assert frame.endswith(TAIL + (b"\n\n" if token else b""))


def test_a_script_of_nothing() -> None:
    """A section without objects is a frame alone."""
    assert plain_sql(HEAD % b"" + b"\n" + TAIL, 18).startswith(b"--")
    assert plain_sql(b"", 15) == b""


def test_bytes_that_are_no_text_pass() -> None:
    """A body in a single-byte encoding is not decoded."""
    assert b"\xff\xfe" in plain_sql(HEAD % b"" + b"COMMENT ON SCHEMA x IS '\xff\xfe';", 15)


def test_grants_one_by_one() -> None:
    """Semicolons, dashes, quotes and newlines inside of quoted names end no statement and begin no comment."""
    script = b"""--
-- Name: TABLE "a;b"; Type: ACL; Schema: public
--

GRANT SELECT ON TABLE public."a;""--
b" TO "x;y";
REVOKE ALL ON SCHEMA public FROM PUBLIC;-- the end; of it

SET SESSION AUTHORIZATION "o--'";
"""
    assert statements(script) == [
        b'GRANT SELECT ON TABLE public."a;""--\nb" TO "x;y";',
        b"REVOKE ALL ON SCHEMA public FROM PUBLIC;",
        b'SET SESSION AUTHORIZATION "o--\'";',
    ]
    assert statements(b"") == []
    assert statements(b"-- only; a comment\n;\n") == []


def test_many_grants_take_no_time() -> None:
    """A script of megabytes is cut in time that grows with its length, not with its square."""
    script = b'GRANT SELECT ON TABLE "t;" TO PUBLIC;\n\n' * 50_000
    assert len(statements(script)) == 50_000
