"""A row as one text in which no two different rows agree, and the same on both ends. Pure, but for the SQL that it composes.

A text of the whole row, as ``ROW(…)::text`` writes it, quotes whatever might need it, letter by letter. Most columns need
none of that: a number has no separator in it, and a string is delimited by its length. Only what is left is quoted.

The forms are those of the types' own output functions: a cast to text that a user has defined hides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec
from psycopg import sql

from pglockstep.postgres.catalog import Column, Table
from pglockstep.postgres.row_texts import record_text, utf8
from pglockstep.postgres.text_forms import portable

#: Types in whose text there is neither ``|`` nor a ``~`` at the beginning.
_PLAIN = {
    "smallint", "integer", "bigint", "oid", "boolean", "real", "double precision", "numeric", "uuid", "bytea", "date",
    "time without time zone", "time with time zone", "timestamp without time zone", "timestamp with time zone",
    "interval",
}  # fmt: skip
#: Types of which the length of the text is known without it.
_TEXTS = {"text", "character varying", "character", "bpchar"}
#: Types that have room for every value of their kind; one without a modifier rounds and cuts nothing off.
_WIDEST = {
    "smallint": "bigint", "integer": "bigint", "bigint": "bigint", "numeric": "numeric",
    "character varying": "character varying", "character": "bpchar", "bpchar": "bpchar",
}  # fmt: skip
#: As many arguments as a function takes.
_MOST = 100

_MODIFIER = re.compile(r" ?\([0-9, -]*\)")


class Content(msgspec.Struct, frozen=True):
    """The columns of a row by how they are written into its text; columns of one name are written alike on both ends.

    `forms`: of columns among the `quoted` whose text depends on the server's version, the type that says what to read instead.
    """

    plain: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    quoted: tuple[str, ...] = ()
    forms: Mapping[str, str] = {}

    @classmethod
    def of(
        cls, source: Table, target: Table, columns: Sequence[str], *, measured: bool, same_major: bool = True
    ) -> Content:
        """How `columns` of these two tables are written; `measured`: lengths of texts are the same on both ends."""
        forms = {} if same_major else _forms(source, target, columns)
        here, there = ({each.name: kind_of(each) for each in table.columns} for table in (source, target))
        kinds = {name: here[name] if here[name] == there[name] else "quoted" for name in columns}
        if not measured:
            kinds = {name: "quoted" if kind == "texts" else kind for name, kind in kinds.items()}
        kinds |= dict.fromkeys(forms, "quoted")
        plain, texts, quoted = (
            tuple([name for name in columns if kinds[name] == kind]) for kind in ("plain", "texts", "quoted")
        )
        if len(plain) + 2 * len(texts) >= _MOST - 2:
            return cls(quoted=tuple(columns), forms=forms)
        return cls(plain, texts, quoted, forms)

    def text(self, encoding: str) -> sql.Composed:
        """The SQL of the text of a row of ``t``, in UTF-8 whatever the database's own `encoding`."""
        free = [*self.plain, *self.texts]
        if not free:
            return record_text(self._quoted(), encoding)
        names = [sql.Identifier("t", each) for each in free]
        # concat_ws leaves out what is NULL: so which ones are is said first
        nulls = sql.SQL("CASE WHEN num_nulls({}) > 0 THEN '~' || concat({}) END").format(
            sql.SQL(", ").join(names),
            sql.SQL(", ").join(sql.SQL("{} IS NULL").format(each) for each in names),
        )
        parts: list[sql.Composable] = [nulls, *names[: len(self.plain)]]
        for each in names[len(self.plain) :]:
            parts += [sql.SQL("octet_length({})").format(each), each]
        if self.quoted:
            parts.append(record_text(self._quoted(), "UTF8"))
        return utf8(sql.SQL("concat_ws('|', {})").format(sql.SQL(", ").join(parts)), encoding)

    def record(self) -> sql.Composed:
        """The SQL of a row of ``t`` as a record, whose hash is that of its values: the same for what its types call equal."""
        parts: list[sql.Composable] = [sql.Identifier("t", each) for each in (*self.plain, *self.texts)]
        if self.quoted:
            parts.append(sql.SQL('{} COLLATE "C"').format(record_text(self._quoted(), "UTF8")))
        return sql.SQL("ROW({})").format(sql.SQL(", ").join(parts))

    def _quoted(self) -> list[sql.Composable]:
        return [_read(name, self.forms.get(name)) for name in self.quoted]


def _read(name: str, type_name: str | None) -> sql.Composable:
    form = None if type_name is None else portable(type_name)
    column = sql.Identifier("t", name)
    return column if form is None else form.format(value=column)


def _forms(source: Table, target: Table, columns: Sequence[str]) -> dict[str, str]:
    """Of these columns those whose text depends on the server's version, with the type that both ends give them."""
    here, there = (
        {each.name: each.base_type or each.type_name for each in table.columns} for table in (source, target)
    )
    return {
        name: here[name] for name in columns if here[name] == there[name] and portable(here[name]) is not None
    }


def kind_of(column: Column) -> str:
    """How a column is written: the name of one of `Content`'s fields."""
    name = base_name(column)
    return "plain" if name in _PLAIN else "texts" if name in _TEXTS else "quoted"


def comparable_type(column: Column) -> str:
    """The type that values of this column and of its like on the other end are compared in: it has room for both."""
    name = base_name(column)
    return _WIDEST.get(name, column.base_type or column.type_name)


def base_name(column: Column) -> str:
    """The name of a column's type, or of the one that a domain stands on, without its modifier."""
    return _MODIFIER.sub("", column.base_type or column.type_name)
