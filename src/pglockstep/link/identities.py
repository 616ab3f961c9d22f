"""Replica identities that vanish from published tables: what PostgreSQL then refuses to a table's users is given back.

Whoever drops the key of a published table makes its UPDATEs and DELETEs fail. Promised: a daemon sees it within about a
second, and they work again. With ``without_key = "full"`` the table gets REPLICA IDENTITY FULL, after what it had has
been written down on the target, so that teardown can set it back; a target that is away keeps nobody waiting, and is
told later. Where FULL is not wanted, not ours to set or no help, the table is taken out of the publication: it is not
followed any more, which is said loudly. That is done only to one seen without an identity twice in a row: its key may be
on the way from one index to the next. Nothing waits long for a lock, because others would wait behind it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.copy import source as ours
from pglockstep.copy.source import Unidentified
from pglockstep.errors import LockstepError, SourceBusy, SourceError, SourceUnreachable
from pglockstep.postgres.connect import connect, ends, translate
from pglockstep.postgres.names import QualifiedName, quote_if_needed
from pglockstep.progress import target as progress
from pglockstep.progress.target import ChangedIdentity, slot_name

if TYPE_CHECKING:
    from pglockstep.link.link import Link

log = logging.getLogger(__name__)

#: How often the source is looked at, in seconds; a catalog of thousands of tables may take no larger share of the time.
_EVERY = 1.0
_LARGEST_SHARE = 0.05
#: How long a lock is waited for, and a connection to the target, in seconds.
_PATIENCE = 0.5
_TARGET_PATIENCE = 2.0
#: How soon what was not permitted, or a target that was away, is tried again, in seconds.
_TRY_AGAIN = 10.0


async def watch(link: Link) -> None:
    """Look again and again, until cancelled. An end that is away is no matter."""
    if link.polls:
        return
    watcher = Watcher(link)
    while True:
        try:
            if link_id := link.standing.link_id or await watcher.known_to_target():
                await watcher.keep_looking(link_id)
        except LockstepError as error:
            log.debug("identities were not looked at: %s", error, extra=link.about("identity.failed"))
        await asyncio.sleep(_EVERY)


async def settle(link: Link) -> None:
    """Look just now, for a link that no daemon keeps."""
    if link.polls:
        return
    watcher = Watcher(link)
    async with watcher.session(link.standing.link_id) as conn:
        if await watcher.look(conn, link.standing.link_id):
            await asyncio.sleep(_EVERY)
            await watcher.look(conn, link.standing.link_id)


class Watcher:
    """Looks at one link's source. What it has said it does not say again while it stays so."""

    def __init__(self, link: Link) -> None:
        self._link = link
        source, target = ends(link.config)
        patience = min(_PATIENCE, source.lock_timeout)
        self._source = msgspec.structs.replace(source, lock_timeout=patience)
        self._target = msgspec.structs.replace(
            target, lock_timeout=patience, connect_timeout=min(_TARGET_PATIENCE, target.connect_timeout)
        )
        self._seen: set[QualifiedName] = set()
        self._said: set[tuple[QualifiedName, str]] = set()
        self._not_before: dict[QualifiedName, float] = {}
        self._unremembered: dict[QualifiedName, ChangedIdentity] = {}
        self._target_not_before = 0.0
        self._took = 0.0

    async def known_to_target(self) -> str | None:
        """The link's id while its first copy is being made, when only the target has it."""
        conn = await connect(self._target, "identities")
        try:
            with translate(self._target):
                record = await progress.read(conn)
        finally:
            await conn.close()
        return None if record is None else record.id

    @asynccontextmanager
    async def session(self, link_id: str) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """A session of the source's, which ends when the link is taken off it."""
        conn = await connect(self._source, "identities")
        try:
            with translate(self._source):
                await ours.mark_at_work(conn, link_id)
            yield conn
        finally:
            await conn.close()

    async def keep_looking(self, link_id: str) -> None:
        """Look until something fails, or the link is another one."""
        async with self.session(link_id) as conn:
            while self._link.standing.link_id in ("", link_id):
                await self.look(conn, link_id)
                await asyncio.sleep(max(_EVERY, self._took / _LARGEST_SHARE))

    async def look(self, conn: AsyncConnection[TupleRow], link_id: str) -> bool:
        """Look once, and let the users of what is found write again; returns whether anything was found."""
        publication, began = slot_name(link_id), time.monotonic()
        found = await ours.unidentified(conn, self._source, publication)
        self._took = time.monotonic() - began
        for each in found:
            if self._not_before.get(each.table, 0.0) > time.monotonic():
                continue
            if not await self._set_full(conn, link_id, each) and each.table in self._seen:
                await self._take_out(conn, publication, each)
        self._seen = {each.table for each in found}
        self._said = {(table, what) for table, what in self._said if table in self._seen}
        if self._unremembered and time.monotonic() > self._target_not_before:
            await self._remember(link_id)
        return bool(found)

    async def _set_full(self, conn: AsyncConnection[TupleRow], link_id: str, lost: Unidentified) -> bool:
        """Set REPLICA IDENTITY FULL; true also if that has to wait for a lock, false if it is not to be."""
        if _why_not_full(lost, self._link.config.without_key, conn.info.user):
            return False
        changed = ChangedIdentity(lost.table, lost.identity)
        self._unremembered[lost.table] = changed
        if time.monotonic() > self._target_not_before:
            await self._remember(link_id)
        try:
            await ours.set_full_identity(conn, self._source, [lost.table])
        except SourceUnreachable:
            raise
        except SourceBusy as error:
            self._say(
                lost.table,
                "busy",
                "table %s has lost its replica identity, and its users' UPDATEs and DELETEs are refused until it has another; "
                "tried again every second: %s",
                error.message,
            )
            return True
        except SourceError as error:
            self._unremembered.pop(lost.table, None)
            self._say(lost.table, "refused", "table %s was refused REPLICA IDENTITY FULL: %s", error.message)
            return False
        self._say(
            lost.table,
            "full",
            "table %s has lost its replica identity, so that its users' UPDATEs and DELETEs were refused: set to REPLICA "
            "IDENTITY FULL; teardown sets it back to %s%s",
            changed.words,
            ", once the target is back and has been told" if lost.table in self._unremembered else "",
        )
        return True

    async def _take_out(self, conn: AsyncConnection[TupleRow], publication: str, lost: Unidentified) -> None:
        """Take the table out of the publication; if that is not permitted either, say what a person has to type."""
        why = _why_not_full(lost, self._link.config.without_key, conn.info.user)
        try:
            with translate(self._source):
                await conn.execute(ours.withdrawal(publication, lost.table))
        except SourceUnreachable:
            raise
        except SourceBusy:
            return
        except SourceError as error:
            self._not_before[lost.table] = time.monotonic() + _TRY_AGAIN
            self._say(
                lost.table,
                "helpless",
                "table %s has no replica identity, so that its users' UPDATEs and DELETEs are refused, and role %s may not "
                "help (%s): type on the source, as a superuser: %s;",
                quote_if_needed(conn.info.user),
                error.message,
                _cure(lost, self._link.config.without_key, publication),
                level=logging.ERROR,
            )
            return
        self._say(
            lost.table,
            "out",
            "table %s has lost its replica identity, and %s: taken out of publication %s, so that its users can write; THE "
            "TARGET DOES NOT FOLLOW IT ANY MORE: give it a primary key, then copy anew (pglockstep teardown, empty the "
            "target, pglockstep once), or leave it out with exclude = ['%s']",
            why or "REPLICA IDENTITY FULL was refused",
            publication,
            lost.table,
            level=logging.ERROR,
        )

    async def _remember(self, link_id: str) -> None:
        """Write down on the target what was changed, or is about to be; later, if that cannot be done now."""
        try:
            conn = await connect(self._target, "identities")
            try:
                with translate(self._target):
                    await progress.remember_identities(conn, link_id, list(self._unremembered.values()))
            finally:
                await conn.close()
        except LockstepError as error:
            self._target_not_before = time.monotonic() + _TRY_AGAIN
            log.debug(
                "identities were not written down: %s", error, extra=self._link.about("identity.failed")
            )
        else:
            self._unremembered.clear()

    def _say(
        self, table: QualifiedName, what: str, sentence: str, *words: object, level: int = logging.WARNING
    ) -> None:
        if (table, what) not in self._said:
            self._said.add((table, what))
            log.log(level, sentence, table, *words, extra=self._link.about(f"identity.{what}"))


def _why_not_full(lost: Unidentified, without_key: str, role: str) -> str:
    """What speaks against REPLICA IDENTITY FULL; empty if nothing does. Pure."""
    if without_key != "full":
        return f'without_key = "{without_key}" rules out REPLICA IDENTITY FULL'
    if lost.has_generated:
        return "REPLICA IDENTITY FULL is no help because of its generated columns"
    if not lost.may_alter:
        return f"role {quote_if_needed(role)} may not alter it, not being its owner"
    return ""


def _cure(lost: Unidentified, without_key: str, publication: str) -> str:
    """What a person with more rights than ours types on the source. Pure."""
    if without_key != "full" or lost.has_generated:
        return ours.withdrawal(publication, lost.table).as_string()
    return f"ALTER TABLE ONLY {lost.table} REPLICA IDENTITY FULL"
