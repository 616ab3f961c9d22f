"""Running PostgreSQL's own pg_dump and pg_restore. A password never reaches a command line or an environment.

The dump holds the schema and nothing else: no rows, no publications, no subscriptions, nothing of ours.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pglockstep.errors import Side, SourceError, TargetError, one_line
from pglockstep.postgres.connect import End
from pglockstep.postgres.installations import Installation
from pglockstep.postgres.names import OUR_SCHEMA, QualifiedName


class Entry(msgspec.Struct, frozen=True):
    """One object of an archive: its number there, and the row of the source's catalog that it was read from."""

    number: int
    class_oid: int
    oid: int


class Described(msgspec.Struct, frozen=True):
    """An entry with its archive's own words for it, and the numbers of the entries that it depends on."""

    entry: Entry
    words: str
    depends: tuple[int, ...]

    @property
    def is_grant(self) -> bool:
        """Whether it grants or revokes: those are not in the archive's scripts."""
        return self.words.startswith(("ACL ", "DEFAULT ACL "))


class Present(NamedTuple):
    """What others have made on a target beforehand: schemas, and extensions that are not our role's."""

    schemas: Collection[str]
    extensions: Collection[str]


class SchemaArchive:
    """A dump of a database's schema in pg_dump's custom format, in a directory of its own."""

    def __init__(self, clients: Installation, directory: Path) -> None:
        self._clients = clients
        self._directory = directory
        self._archive = directory / "schema.dump"
        self._side: Side = "source"

    async def dump(self, end: End, snapshot: str | None, leave_out: Sequence[QualifiedName]) -> None:
        """Dump the schema that `snapshot` shows, or as it is now; raises the end's error with what pg_dump said."""
        self._side = end.side
        given = conninfo_to_dict(end.conninfo)
        environment = dict(os.environ, LC_ALL="C")
        password = given.pop("password", None)
        if password:
            environment["PGPASSFILE"] = str(self._password_file(str(password)))
        arguments = [
            "--format=custom",
            "--schema-only",
            *([f"--snapshot={snapshot}"] if snapshot else []),
            "--no-publications",
            "--no-subscriptions",
            "--no-security-labels",
            "--no-tablespaces",
            "--encoding=UTF8",
            f"--lock-wait-timeout={round(end.lock_timeout * 1000)}",
            f"--exclude-schema={_literal_pattern(OUR_SCHEMA)}",
            *(f"--exclude-table={_literal_pattern(*name)}" for name in leave_out),
            f"--file={self._archive}",
            f"--dbname={make_conninfo('', **given)}",
        ]
        try:
            await self._run("pg_dump", arguments, environment)
        finally:
            (self._directory / "pgpass").unlink(missing_ok=True)

    async def entries(self, section: str, present: Present | None = None) -> list[Entry]:
        """What a section holds, in the order in which it can be made.

        Left out are the schemas that are `present` already, and the comments of extensions that are.
        """
        contents = await self._restore("--list", f"--section={section}")
        schemas, extensions = ("|".join(map(re.escape, each)) for each in present or ((), ()))
        barred = re.compile(
            rf"\d+; \d+ \d+ (SCHEMA - ({schemas}) \S+|COMMENT - EXTENSION ({extensions})( \S*)?)".encode()
        )
        return [
            Entry(*(int(number) for number in found.groups()))
            for line in contents.splitlines()
            if (found := re.match(rb"(\d+); (\d+) (\d+) ", line)) and not barred.fullmatch(line.rstrip())
        ]

    async def described(self) -> list[Described]:
        """Everything in the archive, in the order in which it can be made, with what it depends on."""
        found: list[Described] = []
        listed = await self._run("pg_restore", ["--list", "--verbose", str(self._archive)])
        for line in listed.decode(errors="replace").split("\n"):
            if match := re.match(r"(\d+); (\d+) (\d+) (.*)", line):
                found.append(Described(Entry(*map(int, match.groups()[:3])), match[4], ()))
            elif found and (match := re.fullmatch(r";\tdepends on:((?: \d+)+)", line)):
                found[-1] = msgspec.structs.replace(found[-1], depends=tuple(map(int, match[1].split())))
        return found

    async def script(self, entries: Sequence[Entry], *options: str, target_major: int) -> bytes:
        """The SQL of just these entries."""
        if not entries:
            return b""
        # several may be asked for at once
        with tempfile.NamedTemporaryFile("w", dir=self._directory, suffix=".list") as chosen:
            chosen.write("".join(f"{entry.number};\n" for entry in entries))
            chosen.flush()
            return plain_sql(await self._restore(f"--use-list={chosen.name}", *options), target_major)

    async def scripts(self, entries: Sequence[Entry], *, target_major: int) -> list[bytes]:
        """The SQL of each of these entries by itself."""
        if not entries:
            return []
        text = await self.script(entries, "--verbose", target_major=target_major)
        found = list(_ENTRY.finditer(text))
        if [Entry(*map(int, each.groups())) for each in found] != list(entries):
            # a name or a string that looks like the head of an entry
            return [await self.script([entry], target_major=target_major) for entry in entries]
        edges = [each.start() for each in found]
        return [text[start:end] for start, end in zip(edges, [*edges[1:], len(text)], strict=True)]

    async def removal(self, entries: Sequence[Entry], *, target_major: int) -> bytes:
        """The statements that drop what these entries make, one by one and without CASCADE."""
        making, both = await asyncio.gather(
            self.script(entries, target_major=target_major),
            self.script(entries, "--clean", "--if-exists", target_major=target_major),
        )
        # both say the same but for the statements that drop, which stand between the script's frame and the rest
        apart = next(
            (at for at, (one, other) in enumerate(zip(making, both, strict=False)) if one != other),
            len(making),
        )
        frame = making.rfind(b"\n", 0, apart) + 1
        assert both.endswith(making[frame:])
        return both[frame : len(both) - len(making) + frame]

    async def digest(self) -> str:
        """What tells this schema from another one; owners and grants aside."""
        text = plain_sql(await self._restore(), 0)
        head = _HEAD.match(text)
        assert head is not None
        return hashlib.sha256(text[head.end() :]).hexdigest()

    async def grants(self, *, target_major: int, of: Collection[int] | None = None) -> list[bytes]:
        """The GRANT, REVOKE and ALTER DEFAULT PRIVILEGES statements, one by one; or only those `of` some entries."""
        contents = await self._run("pg_restore", ["--list", str(self._archive)])
        wanted = [line for line in contents.splitlines() if re.match(rb"\d+; \d+ \d+ (DEFAULT )?ACL ", line)]
        if of is not None:
            entries = await self.described()
            numbers = {each.entry.number for each in entries if not set(of).isdisjoint(each.depends)} | set(
                of
            )
            wanted = [line for line in wanted if int(line.partition(b";")[0]) in numbers]
        if not wanted:
            return []
        chosen = self._directory / "grants.list"
        chosen.write_bytes(b"\n".join(wanted) + b"\n")
        text = await self._run("pg_restore", [f"--use-list={chosen}", "--file=-", str(self._archive)])
        return [each for each in statements(plain_sql(text, target_major)) if _IS_GRANT.match(each)]

    async def _restore(self, *options: str) -> bytes:
        return await self._run(
            "pg_restore", [*options, "--no-owner", "--no-acl", "--file=-", str(self._archive)]
        )

    def _password_file(self, password: str) -> Path:
        escaped = password.replace("\\", "\\\\").replace(":", "\\:")
        path = self._directory / "pgpass"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"*:*:*:*:{escaped}\n")
        return path

    async def _run(
        self, program: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> bytes:
        process = await asyncio.create_subprocess_exec(
            self._clients.program(program),
            *arguments,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            output, complaints = await process.communicate()
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode != 0:
            said = (
                one_line(complaints.decode(errors="replace")) or f"it ended with status {process.returncode}"
            )
            other = "target" if self._side == "source" else "source"
            raise (SourceError if self._side == "source" else TargetError)(
                f"{program} {self._clients.version} could not read the {self._side}'s schema: {said[:600]}",
                hint=f"nothing was changed on the {other}; correct what it says and try again",
            )
        return output


_IS_GRANT = re.compile(
    rb"(GRANT|REVOKE|ALTER DEFAULT PRIVILEGES|SET SESSION AUTHORIZATION|RESET SESSION AUTHORIZATION)\b"
)


#: The script's own frame before its first object: nothing of the user's can be in it.
_HEAD = re.compile(
    rb"(?:--[^\n]*\n|\n|\\restrict [^\n]*\n|SET [^\n]*;\n|SELECT pg_catalog\.set_config\([^\n]*\);\n)*"
)


#: The head of an entry in a verbose script.
_ENTRY = re.compile(rb"^--\n-- TOC entry (\d+) \(class (\d+) OID (\d+)\)\n", re.MULTILINE)


def plain_sql(text: bytes, target_major: int) -> bytes:
    """pg_restore's script without what only psql understands, or only a newer server than the target.

    `text` may hold any bytes inside function bodies: only the script's own frame is touched.
    """
    found = _HEAD.match(text)
    assert found is not None
    head, body = found[0], text[found.end() :]
    if restricted := re.search(rb"^\\restrict (\S+)\n", head, re.MULTILINE):
        head = head.replace(restricted[0], b"", 1)
        before, _, after = body.rpartition(b"\\unrestrict " + restricted[1])
        body = before + after
    if target_major < 17:
        head = head.replace(b"SET transaction_timeout = 0;\n", b"", 1)
    # our own session has its time-outs; the script's would outlive it on this connection
    return head.replace(b"SET lock_timeout = 0;\n", b"", 1) + body


def statements(script: bytes) -> list[bytes]:
    """The statements of a script that holds nothing but grants: only quoted identifiers can hide a semicolon."""
    found: list[bytes] = []
    for match in re.finditer(rb'(?>"(?:[^"]|"")*"|--[^\n]*\n|[^";])++;', script):
        statement = re.sub(rb'("(?:[^"]|"")*")|--[^\n]*\n', lambda m: m[1] or b"", match[0]).strip()
        if statement != b";":
            found.append(statement)
    return found


def _literal_pattern(*names: str) -> str:
    """A pattern of pg_dump's that matches just this name."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)
