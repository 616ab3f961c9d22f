"""The doctor's judgements that no server here can be brought to show: pure, by themselves."""

from __future__ import annotations

import pytest

from fix_servers import Servers, connect, majors
from pglockstep.doctor.connection import connection_findings
from pglockstep.doctor.grants import TargetNeeds, target_script
from pglockstep.doctor.readings import Place, Wire
from pglockstep.doctor.source import retention_findings
from pglockstep.doctor.target import text_findings, version_findings
from pglockstep.errors import ConfigError, SourceLacks, SourceUnreachable
from pglockstep.findings import Finding, demand, told
from pglockstep.postgres.connect import End, refusal, too_old
from pglockstep.postgres.names import quote_if_needed
from pglockstep.postgres.privileges import Facts

END = End(side="source", link="main", conninfo="host=db.example dbname=app user=app password=s3cr3t")
PLACE = Place(
    backend_pid=7,
    address="10.0.0.1",
    port=5432,
    offers_tls=True,
    gss_encrypted=False,
    size=1,
    collate="C",
    provider="c",
    locale="",
    slot_limit=None,
    idle_slot_timeout=0,
    has_our_schema=False,
)


def facts(version: int = 180000, encoding: str = "UTF8") -> Facts:
    return Facts(
        version=version,
        system_identifier="1",
        database_oid=2,
        database="app",
        encoding=encoding,
        role="app",
        superuser=False,
        replication=True,
        bypass_row_security=False,
        in_recovery=False,
        wal_level="logical",
        max_slots=1,
        used_slots=0,
        max_senders=1,
        used_senders=0,
        can_create=True,
        can_stage=True,
    )


@pytest.mark.parametrize(
    ("host", "address", "encrypted", "seen"),
    [
        ("db.example", "10.0.0.1", False, ["no_tls"]),
        ("db.example", "10.0.0.1", True, []),
        ("localhost", "127.0.0.1", False, []),
        ("::1", "::1", False, []),
        ("/var/run/postgresql", "", False, []),
    ],
)
def test_a_connection_that_others_can_read(host: str, address: str, encrypted: bool, seen: list[str]) -> None:
    """Only what leaves the machine has to be encrypted."""
    wire = Wire(host=host, address=address, told_pid=7, encrypted=encrypted)
    found = list(connection_findings(END, wire, PLACE))
    assert [each.code for each in found] == seen
    assert all("sslmode=require" in each.fix and each.severity == "warning" for each in found)


@pytest.mark.parametrize(
    ("said", "code", "fix"),
    [
        ('FATAL: password authentication failed for user "app"', "wrong_password", "correct the password"),
        ('FATAL: database "my app" does not exist', "unknown_database", "correct the database"),
        ('FATAL: role "App" does not exist', "unknown_role", 'CREATE ROLE "App" LOGIN;'),
        (
            'FATAL: no pg_hba.conf entry for host "10.0.0.9", user "App", database "app", no encryption',
            "not_admitted",
            'host app "App" 10.0.0.9/32 scram-sha-256',
        ),
        ("FATAL: pg_hba.conf rejects connection", "not_admitted", "pg_hba.conf"),
        (
            "could not translate host name",
            "unreachable",
            "pg_isready -d 'host=db.example dbname=app user=app'",
        ),
    ],
)
def test_why_a_connection_fails(said: str, code: str, fix: str) -> None:
    """What the server said leads to its own next step, and no password is told."""
    found = refusal(END, said)
    assert found.code == code
    assert fix in found.fix
    assert "s3cr3t" not in found.message + found.hint
    assert isinstance(found.error(), SourceUnreachable)


def test_a_server_that_is_too_old() -> None:
    """It lacks what the link needs, and no waiting helps."""
    assert not too_old(END, 13).error().transient


def test_what_the_wal_of_a_resting_link_may_take() -> None:
    """A limit is told; none needs no word."""
    assert list(retention_findings(PLACE)) == []
    limited = Place(
        **{name: getattr(PLACE, name) for name in PLACE.__struct_fields__} | {"slot_limit": 1 << 30}
    )
    (found,) = retention_findings(limited)
    assert (found.code, found.severity) == ("slot_limit", "info")
    assert "1.0 GB" in found.message


def test_ends_of_another_kind() -> None:
    """A target that is older, or that lacks characters, is a warning; one with all characters is none."""
    assert [each.code for each in version_findings(facts(180000), facts(160000))] == ["older_target"]
    assert list(version_findings(facts(150000), facts(180000))) == []
    latin = text_findings(facts(), PLACE, facts(encoding="LATIN1"), PLACE)
    assert [each.code for each in latin] == ["encoding_differs"]
    assert list(text_findings(facts(encoding="LATIN1"), PLACE, facts(), PLACE)) == []


def test_postgresql_14_can_not_grant_a_parameter() -> None:
    """Its script says so instead of a GRANT that would fail."""
    needs = TargetNeeds(
        role="sync",
        exists=False,
        major=14,
        database="app",
        extensions=(),
        roles=(),
        wrappers=(),
        things=(),
        tables=(),
    )
    script = target_script(needs, "somewhere")
    assert "ON PARAMETER" not in script
    assert "ALTER SCHEMA public OWNER TO sync;" in script


def test_a_finding_is_the_error_that_it_becomes() -> None:
    """One judgement, two readers: the error has the finding's words, and gives the finding back."""
    warning = Finding(side="source", severity="warning", code="a", message="m", fix="f")
    found = Finding(
        side="source",
        severity="error",
        code="b",
        message="it lacks this",
        fix="A;\nB;\nC;\nD;\nE;",
        where="on the source",
        otherwise="or leave it",
    )
    with pytest.raises(SourceLacks) as caught:
        demand([warning, found])
    assert caught.value.message == found.message
    assert caught.value.hint == (
        "on the source: A; B; C; (and 2 more; pglockstep doctor has them all), or leave it"
    )
    assert told(caught.value, "target") is found
    assert told(ConfigError("no", hint="yes"), "target").fix == "yes"


@pytest.mark.parametrize("major", majors)
def test_names_are_quoted_as_each_server_needs(servers: Servers, major: int) -> None:
    """Every keyword of every version is either quoted, or taken bare by that very server."""
    with connect(servers.source(major).conninfo()) as conn:
        for (word,) in conn.execute("SELECT word FROM pg_get_keywords()").fetchall():
            name = quote_if_needed(word)
            conn.execute(f"BEGIN; CREATE TABLE {name} (); ROLLBACK".encode())
            if word != "none":  # no role can be called that
                conn.execute(f"BEGIN; CREATE ROLE {name}; ROLLBACK".encode())
