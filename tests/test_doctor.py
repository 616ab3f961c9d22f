"""The doctor finds what is prepared, and its own fix, pasted as it stands, makes it go away."""

from __future__ import annotations

import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from fix_copy import MakeRole, make_role
from fix_doctor import ROLE, Fault, Patient, as_role, psql, run
from fix_servers import Cli, Pair, majors

__all__ = ["make_role"]

NEWEST = majors[-1]
R = '"doc ""Tor"'
DATABASE = "{database}"


def elsewhere(patient: Patient) -> None:
    """Point `target` at an empty database."""
    run(patient.pair.target_server.conninfo(), "CREATE DATABASE elsewhere")
    patient.target = patient.pair.target_server.conninfo("elsewhere")


def exchanged(patient: Patient) -> None:
    """Exchange `source` and `target`."""
    patient.source, patient.target = patient.target, patient.source


def given_back(patient: Patient) -> None:
    """The right connection strings again."""
    patient.source, patient.target = patient.pair.source, patient.pair.target


def everything(patient: Patient) -> None:
    """Leave nothing out."""
    patient.keys = [line for line in patient.keys if not line.startswith("exclude")]


TRIGGER = "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
OWNED = f"CREATE TABLE t (id int PRIMARY KEY);\nALTER TABLE t OWNER TO {R};\nGRANT CREATE ON DATABASE {DATABASE} TO {R}"
READER = 'CREATE ROLE "Reader";\nCREATE TABLE t (id int PRIMARY KEY)'
READER_GOES = ('DROP OWNED BY "Reader";\nDROP ROLE "Reader"', 'DROP ROLE "Reader"')
PUBLISHER = "LOGIN REPLICATION"

FAULTS = [
    # the source: what its role may not do
    Fault("no_replication", "source", on_source=f"ALTER ROLE {R} NOREPLICATION;\n{OWNED}", source_as=ROLE),
    Fault(
        "no_create",
        "source",
        on_source=f"CREATE TABLE t (id int PRIMARY KEY);\nALTER TABLE t OWNER TO {R}",
        source_as=ROLE,
    ),
    Fault(
        "not_owner",
        "source",
        on_source=f'{OWNED};\nCREATE ROLE "select";\n'
        'CREATE TABLE "Orders" (id int PRIMARY KEY);\nALTER TABLE "Orders" OWNER TO "select"',
        source_as=ROLE,
        says='public."Orders"',
        undo=('DROP OWNED BY "select";\nDROP ROLE "select"', ""),
    ),
    Fault(
        "not_owner",
        "source",
        on_source=f"{OWNED};\nCREATE TABLE u (id int PRIMARY KEY)",
        source_as=ROLE,
        label="superusers_table",
    ),
    Fault(
        "no_usage",
        "source",
        on_source=f'{OWNED};\nCREATE SCHEMA "My App";\n'
        f'CREATE TABLE "My App".u (id int PRIMARY KEY);\nALTER TABLE "My App".u OWNER TO {R}',
        source_as=ROLE,
    ),
    Fault(
        "not_readable",
        "source",
        on_source=f'{OWNED};\nCREATE SEQUENCE "User"',
        source_as=ROLE,
        says='public."User"',
    ),
    Fault(
        "not_readable",
        "source",
        on_source=f"{OWNED};\nREVOKE SELECT ON t FROM {R}",
        source_as=ROLE,
        says="public.t",
        label="own_table_revoked",
    ),
    Fault(
        "large_objects_not_readable",
        "source",
        on_source=f"{OWNED};\nSELECT lo_from_bytea(0, 'x') FROM generate_series(1, 2)",
        source_as=ROLE,
        says="2 large objects",
    ),
    Fault(
        "hidden_rows",
        "source",
        on_source=f"{OWNED};\nALTER TABLE t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        source_as=ROLE,
    ),
    # the source: what is in it
    Fault(
        "no_identity",
        "source",
        on_source="CREATE TABLE k (v text)",
        keys=('without_key = "refuse"',),
        says="public.k",
    ),
    Fault(
        "generated_identity",
        "source",
        on_source='CREATE TABLE "G" (a int, b int GENERATED ALWAYS AS (a) STORED);\nCREATE TABLE x (id int PRIMARY KEY)',
        keys=('exclude = ["public.x"]',),
        majors=(18, 18),
    ),
    Fault(
        "always_trigger",
        "source",
        on_source=f"CREATE TABLE t (id int PRIMARY KEY);\n{TRIGGER};\n"
        'CREATE TRIGGER "Tr" AFTER INSERT ON t EXECUTE FUNCTION f();\n'
        "CREATE TRIGGER b AFTER INSERT ON t EXECUTE FUNCTION f();\n"
        'ALTER TABLE t ENABLE ALWAYS TRIGGER "Tr";\nALTER TABLE t ENABLE REPLICA TRIGGER b',
    ),
    Fault(
        "unlogged",
        "source",
        "warning",
        on_source='CREATE UNLOGGED TABLE "U" (id int PRIMARY KEY)',
        says='public."U"',
    ),
    Fault(
        "large_objects",
        "source",
        "warning",
        on_source="SELECT lo_from_bytea(0, 'x')",
        repair=lambda patient: run(patient.source, "SELECT lo_unlink(oid) FROM pg_largeobject_metadata"),
    ),
    Fault(
        "left_out_but_needed",
        "source",
        on_source="CREATE TABLE a (id int PRIMARY KEY);\nCREATE TABLE b (a int REFERENCES a)",
        keys=('exclude = ["public.a"]',),
        repair=everything,
    ),
    Fault(
        "idle_slot_timeout",
        "source",
        "warning",
        on_source="ALTER SYSTEM SET idle_replication_slot_timeout = '2d';\nSELECT pg_reload_conf()",
        says="2d",
        majors=(18, 18),
        undo=("ALTER SYSTEM RESET idle_replication_slot_timeout;\nSELECT pg_reload_conf()", ""),
    ),
    Fault(
        "no_replica_role",
        "source",
        "info",
        on_source=OWNED,
        source_as=ROLE,
        says="incidents restore",
        label="restores_nothing",
    ),
    # the target: what its role may not do
    Fault("no_create", "target", target_as=ROLE),
    Fault(
        "no_temp", "target", on_target=f"REVOKE TEMPORARY ON DATABASE {DATABASE} FROM PUBLIC", target_as=ROLE
    ),
    Fault("no_create_in_schema", "target", on_source="CREATE TABLE t (id int PRIMARY KEY)", target_as=ROLE),
    Fault(
        "no_replica_role",
        "target",
        on_source="CREATE TABLE t (id int PRIMARY KEY, t int REFERENCES t)",
        target_as=ROLE,
        says="public.t",
    ),
    Fault("ddl_unseen", "target", "info", target_as=ROLE),
    Fault(
        "ddl_unseen",
        "target",
        "warning",
        target_as=ROLE,
        keys=('guard.protect_target = "block"',),
        says="not refused",
        label="blocked_ddl",
    ),
    Fault("no_createdb", "target", "info", target_as=ROLE),
    Fault(
        "hidden_rows",
        "target",
        on_source="CREATE TABLE t (id int PRIMARY KEY);\nALTER TABLE t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        target_as=ROLE,
    ),
    Fault(
        "extension_needs_superuser",
        "target",
        on_source='CREATE SCHEMA "Ext";\nCREATE EXTENSION vector SCHEMA "Ext"',
        target_as=ROLE,
        majors=(18, 18),
    ),
    Fault(
        "needs_superuser",
        "target",
        on_source="CREATE FUNCTION f() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';\n"
        "CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION f()",
        target_as=ROLE,
        says="event trigger e",
    ),
    # the target: what it does not have
    Fault(
        "policy_role_missing",
        "target",
        on_source=f'{READER};\nCREATE POLICY p ON t TO "Reader" USING (true)',
        says='"Reader"',
        undo=READER_GOES,
    ),
    Fault(
        "role_missing",
        "target",
        "warning",
        on_source=f'{READER};\nGRANT SELECT ON t TO "Reader"',
        says='"Reader"',
        undo=READER_GOES,
    ),
    Fault(
        "owner_not_given",
        "target",
        "warning",
        on_source='CREATE ROLE "Owner";\nCREATE TABLE t (id int PRIMARY KEY);\nALTER TABLE t OWNER TO "Owner"',
        on_target='CREATE ROLE "Owner"',
        target_as=ROLE,
        undo=('DROP OWNED BY "Owner";\nDROP ROLE "Owner"', 'DROP ROLE "Owner"'),
    ),
    Fault(
        "extension_missing",
        "target",
        on_source="CREATE EXTENSION vector",
        majors=(18, 15),
        repair=lambda patient: psql(patient.source, "DROP EXTENSION vector;"),
    ),
    Fault(
        "not_empty",
        "target",
        on_source="CREATE TABLE t (id int PRIMARY KEY)",
        on_target="CREATE VIEW v AS SELECT 1",
        repair=elsewhere,
        undo=("", "DROP DATABASE elsewhere"),
    ),
    Fault(
        "swapped",
        "target",
        "warning",
        on_target="CREATE TABLE t (id int PRIMARY KEY)",
        repair=exchanged,
    ),
    Fault("older_target", "target", "warning", majors=(18, 16), repair=exchanged),
]


@pytest.fixture
def patient(
    request: pytest.FixtureRequest,
    make_role: MakeRole,
    pair: Pair,
    cli: Cli,
) -> Patient:
    """A link between two empty databases; the role is there on both servers, and may log in and replicate."""
    make_role(pair.source_server, ROLE, PUBLISHER)
    make_role(pair.target_server, ROLE, "LOGIN")
    return Patient(cli, pair)


def known(fault: Fault) -> object:
    pair = fault.majors or (NEWEST, NEWEST)
    return pytest.param(
        fault,
        pair,
        id=str(fault),
        marks=[] if set(pair) <= set(majors) else pytest.mark.skip("not installed"),
    )


@pytest.mark.superusers
@pytest.mark.parametrize(("fault", "pair"), [known(fault) for fault in FAULTS], indirect=["pair"])
def test_each_fault_is_found_and_its_own_fix_mends_it(fault: Fault, patient: Patient) -> None:
    """Found under its code, on its side, with its severity; gone once the fix is pasted as it stands."""
    pair = patient.pair
    for conninfo, statements in ((pair.source, fault.on_source), (pair.target, fault.on_target)):
        name = sql.Identifier(str(conninfo_to_dict(conninfo)["dbname"])).as_string()
        run(conninfo, statements.replace(DATABASE, name))
    try:
        patient.source = as_role(pair.source, fault.source_as)
        patient.target = as_role(pair.target, fault.target_as)
        patient.keys += fault.keys
        found = [each for each in patient.find(fault.code) if each["side"] == fault.side]
        assert len(found) == 1, patient.findings()
        assert found[0]["severity"] == fault.severity
        assert fault.says in found[0]["message"]
        if fault.repair:
            fault.repair(patient)
        else:
            patient.mend(found[0])
        left = [(each["side"], each["severity"]) for each in patient.find(fault.code)]
        assert (fault.side, fault.severity) not in left
    finally:
        for conninfo, statements in zip((pair.source, pair.target), fault.undo, strict=True):
            server = pair.source_server if conninfo == pair.source else pair.target_server
            # what a role owns is in the database, which goes later
            run(server.conninfo() if "DATABASE" in statements else conninfo, statements)
