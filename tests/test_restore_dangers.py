"""A restore under adverse conditions: killed, locked out, without privileges, without a target; and what its message says."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from psycopg import sql

from fix_mirror import contents
from fix_restore import Scene, mailed, shop
from fix_servers import connect
from pglockstep.errors import IdentityChanged, SourceBusy, SourceLacks, TargetLacks, TargetUnreachable
from pglockstep.guard.restore import MARKER
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Lsn
from pglockstep.wal.messages import Begin, Commit, Insert, LogicalMessage, Message

__all__ = ["shop"]

#: a role of the source's that is no superuser has a test of its own
pytestmark = pytest.mark.superusers

#: A process that restores what the file names, as the daemon would.
KILLED = """
import asyncio, pickle, sys
from pglockstep.guard.restore import restore
source, target, order = pickle.load(open(sys.argv[1], "rb"))
print(asyncio.run(restore(source, target, order)).rows)
"""


def test_killed_at_every_failpoint(shop: Scene, tmp_path: Path) -> None:
    """kill -9 when it has begun, before and after its commit: run again it comes to the same end, and does nothing twice."""
    import pickle

    messages = shop.wipe('DELETE FROM "Shop"."User"', 'DELETE FROM "Shop".event')
    work = tmp_path / "work"
    work.write_bytes(pickle.dumps((*shop.ends, shop.order(messages))))

    def run(failpoint: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", KILLED, work],
            env={"PGLOCKSTEP_FAILPOINT": failpoint},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    for name in ("restore.begun", "restore.commit"):
        assert run(name).returncode == -signal.SIGKILL
        assert contents(shop.source)["Shop.User"] == []
    assert run("restore.committed").returncode == -signal.SIGKILL
    shop.source.execute('DELETE FROM "Shop"."User" WHERE id = 5')
    outcome = shop.restore(messages)
    assert outcome.rows == 60 + 200 + 40
    after = contents(shop.source)
    assert len(after["Shop.User"]) == 59
    assert after["Shop.event"] == shop.before["Shop.event"]
    marked = [each for each in shop.transactions() if any(isinstance(one, LogicalMessage) for one in each)]
    assert len([each for each in marked if _marker(each)]) == 1


def _marker(messages: Sequence[Message]) -> str | None:
    """What the message says that opens a transaction of ours."""
    begun = next(index for index, each in enumerate(messages) if isinstance(each, Begin))
    first = messages[begun + 1]
    if isinstance(first, LogicalMessage) and first.prefix == MARKER:
        return first.content.decode()
    return None


def test_the_stream_knows_its_own(shop: Scene) -> None:
    """The transaction opens with a message that names link and incident, and lies between the LSNs that are returned."""
    messages = shop.wipe('DELETE FROM "Shop".animal')
    outcome = shop.restore(messages, incident="42")
    shop.source.execute("INSERT INTO \"Shop\".animal VALUES (5000, 'later')")
    *_, ours, later = shop.transactions()
    assert _marker(ours) == f"{shop.record.id}:42"
    assert len([each for each in ours if isinstance(each, Insert)]) == 60
    commit, following = ours[-1], later[-1]
    assert isinstance(commit, Commit)
    assert isinstance(following, Commit)
    assert Lsn.parse(outcome.marker) <= commit.commit_lsn < outcome.end <= following.commit_lsn


def test_without_a_target(shop: Scene) -> None:
    """A target that is gone, another link's, or has lost the rows as well: an error that says so, and nothing is changed."""
    messages = shop.wipe('DELETE FROM "Shop".animal', 'DELETE FROM "Shop".orders')
    now = contents(shop.source)

    def refused(kind: type[Exception], words: str, **more: object) -> None:
        with pytest.raises(kind, match=words) as caught:
            shop.restore(() if "dropped" in more else messages, **more)
        assert "nothing was changed" in str(getattr(caught.value, "hint", "")) or kind is TargetUnreachable
        assert contents(shop.source) == now

    shop.target.execute("SET session_replication_role = replica")
    shop.target.execute('TRUNCATE "Shop".orders')
    refused(TargetLacks, '"Shop".orders lost on the source')
    shop.target.execute('DROP TABLE "Shop".orders CASCADE')
    refused(TargetLacks, '"Shop".orders is not on the target any more')
    refused(
        TargetLacks, '"Shop".orders is gone from the target, too', dropped=[QualifiedName("Shop", "orders")]
    )
    shop.target.execute("UPDATE pglockstep.progress SET link = link")
    shop.target.execute("DROP SCHEMA pglockstep CASCADE")
    refused(TargetLacks, "remembers no link any more")
    name = str(shop.target.info.dbname)
    shop.target.close()
    with connect(shop.pair.target_server.conninfo()) as conn:
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
    refused(TargetUnreachable, "does not exist")


def test_another_source(shop: Scene) -> None:
    """Where another database answers as the source nothing is put back."""
    import msgspec

    messages = shop.wipe('DELETE FROM "Shop".animal')
    shop.record = msgspec.structs.replace(shop.record, source_identity="1/1")
    with pytest.raises(IdentityChanged):
        shop.restore(messages)
    assert contents(shop.source)["Shop.dog"] == []


def test_who_holds_the_lock_is_named(shop: Scene) -> None:
    """A restore that waits for a lock gives up after lock_timeout, names who holds it, and has changed nothing."""
    messages = shop.wipe('DELETE FROM "Shop".animal')
    other = shop.pair.on_source()
    with other.transaction():
        other.execute("SET LOCAL application_name = 'nightly job'")
        other.execute('LOCK TABLE "Shop".animal IN SHARE MODE')
        with pytest.raises(SourceBusy, match="nightly job") as caught:
            shop.restore(messages)
        assert str(other.info.backend_pid) in str(caught.value)
    assert contents(shop.source)["Shop.animal"] == []
    assert shop.restore(messages).rows == 60


def test_without_the_replica_role(shop: Scene) -> None:
    """Who may not act as a replica is refused where a trigger would fire, with the exact GRANT; where none can it goes on."""
    role = sql.Identifier("restorer")
    server = shop.pair.superuser_on_source()
    server.execute(sql.SQL("CREATE ROLE {} LOGIN BYPASSRLS").format(role))
    try:
        for grant in ('GRANT USAGE ON SCHEMA "Shop" TO {}', 'GRANT ALL ON ALL TABLES IN SCHEMA "Shop" TO {}'):
            server.execute(sql.SQL(grant).format(role))
        users, animals = shop.wipe('DELETE FROM "Shop"."User"'), shop.wipe('DELETE FROM "Shop".animal')
        shop.as_role = "restorer"
        with pytest.raises(SourceLacks, match="triggers, foreign keys or rules") as caught:
            shop.restore(users)
        assert "GRANT SET ON PARAMETER session_replication_role TO restorer;" in caught.value.hint
        assert contents(shop.source)["Shop.User"] == []
        assert shop.restore(animals, incident="8").rows == 60
        if shop.pair.source_server.major >= 15:
            sent = mailed(shop.source)
            server.execute(sql.SQL("GRANT SET ON PARAMETER session_replication_role TO {}").format(role))
            assert shop.restore(users, incident="9").rows == 260
            assert mailed(shop.source) == sent
    finally:
        if shop.pair.source_server.major >= 15:
            server.execute(sql.SQL("REVOKE SET ON PARAMETER session_replication_role FROM {}").format(role))
        server.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(role))


def test_an_always_trigger_is_refused(shop: Scene) -> None:
    """A trigger that fires for replicas as well would mail customers: it is named, and how to keep it quiet."""
    messages = shop.wipe('DELETE FROM "Shop"."User"')
    shop.source.execute('ALTER TABLE "Shop"."User" ENABLE ALWAYS TRIGGER mail')
    sent = mailed(shop.source)
    with pytest.raises(SourceLacks, match="trigger mail of") as caught:
        shop.restore(messages)
    assert 'ALTER TABLE "Shop"."User" DISABLE TRIGGER mail' in caught.value.hint
    assert mailed(shop.source) == sent
    assert contents(shop.source)["Shop.User"] == []


def test_rows_that_the_target_has_lost_as_well(shop: Scene) -> None:
    """What the target has is put back and the rest is told; of a table that it has nothing of, nothing is changed."""
    messages = shop.wipe('DELETE FROM ONLY "Shop".animal')
    shop.target.execute('DELETE FROM ONLY "Shop".animal WHERE id < 4')
    outcome = shop.restore(messages)
    assert [(each.inserted, each.left) for each in outcome.tables] == [(27, 3)]
    assert [(each.what, each.reason) for each in outcome.left] == [("3 rows", "not on the target any more")]
    emptied = shop.wipe('TRUNCATE "Shop".event')
    shop.target.execute('TRUNCATE "Shop".event')
    with pytest.raises(TargetLacks, match="empty on the target, too"):
        shop.restore(emptied, incident="8", expected={QualifiedName("Shop", "event"): 40})
