"""Built-in types whose text for one and the same value depends on the server's major version, and what to read instead. Pure.

Going by every built-in type of 14 to 18, under the settings that all our sessions have. There are three kinds:

* ``"char"`` above 127 is a bare byte on 14 and an escape such as ``\\310`` since 15.
* An ``interval`` with every part at its end is a number of years up to 16, and ``infinity`` since 17.
* The ``reg…`` types print names, and a name looks as the server needs it: in quotes if it is one of *its* key words (16 and
  17 have new ones), with its schema if *it* has several functions of that name. Both change from one version to the next.

Whatever has no name prints as its OID, here too. Members of composite types and bounds of ranges are not looked into: their
text is the server's own. So is that of a jsonpath that calls a method of a number: 14 forgets the parentheses that 15 demands.
"""

from __future__ import annotations

from psycopg import sql

# A column of the user's could be called as one of a catalog's: {value} stands where no other column can be meant.
_INTERVAL = """(
    SELECT CASE x.v::pg_catalog.text
        WHEN 'infinity' THEN '178956970 years 7 mons 2147483647 days 2562047788:00:54.775807'
        WHEN '-infinity' THEN '-178956970 years -8 mons -2147483648 days -2562047788:00:54.775808'
        ELSE x.v::pg_catalog.text
    END
    FROM (SELECT {value} AS v) AS x
)"""

# A literal's quotes do not depend on key words, and keep names with dots and commas apart.
_OBJECT = """(
    SELECT coalesce(
        <schema>pg_catalog.quote_literal(c.<name>::pg_catalog.text)<more>,
        x.v::pg_catalog.oid::pg_catalog.text
    )
    FROM (SELECT {value} AS v) AS x
    LEFT JOIN pg_catalog.<catalog> AS c ON c.oid = x.v::pg_catalog.oid
    <join>
)"""
_SCHEMA = "pg_catalog.quote_literal(n.nspname::pg_catalog.text) || '.' || "
_SCHEMA_JOIN = "LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = c.<namespace>"

# Only the server knows what it calls the arrays of a user's type.
_TYPE = """(
    SELECT pg_catalog.quote_literal(s.nspname::pg_catalog.text) || '.'
        || pg_catalog.quote_literal(coalesce(e.typname, t.typname)::pg_catalog.text)
        || CASE WHEN e.oid IS NULL THEN '' ELSE '[]' END
    FROM pg_catalog.pg_type AS t
    JOIN pg_catalog.pg_namespace AS s ON s.oid = t.typnamespace
    LEFT JOIN pg_catalog.pg_type AS e ON e.oid = t.typelem AND e.typarray = t.oid
    WHERE t.oid = <oid>
)"""
_ARGUMENTS = """ || '(' || coalesce((
    SELECT pg_catalog.string_agg(<type>, ',' ORDER BY g.n)
    FROM pg_catalog.unnest(c.proargtypes) WITH ORDINALITY AS g (type, n)
), '') || ')'"""
_OPERANDS = " || '(' || coalesce(<left>, '') || ',' || coalesce(<right>, '') || ')'"
_REGTYPE = """(
    SELECT coalesce(<type>, x.v::pg_catalog.oid::pg_catalog.text) FROM (SELECT {value} AS v) AS x
)"""

# Bounds belong to the value, as in an array's own text.
_ARRAY = """(
    SELECT CASE WHEN x.v IS NOT NULL THEN
        coalesce(pg_catalog.array_dims(x.v), '') || '(' || coalesce((
            SELECT pg_catalog.string_agg(coalesce(pg_catalog.quote_literal(<element>), 'NULL'), ',' ORDER BY a.n)
            FROM pg_catalog.unnest(x.v) WITH ORDINALITY AS a (v, n)
        ), '') || ')'
    END
    FROM (SELECT {value} AS v) AS x
)"""


def _filled(template: str, **parts: str) -> str:
    for name, part in parts.items():
        template = template.replace(f"<{name}>", part)
    return template


def _type(oid: str) -> str:
    return _filled(_TYPE, oid=oid)


def _object(catalog: str, name: str, namespace: str = "", more: str = "") -> str:
    """The form for an OID of this `catalog`: the column `name`, with the schema of the column `namespace`, and `more`."""
    schema, join = (_SCHEMA, _filled(_SCHEMA_JOIN, namespace=namespace)) if namespace else ("", "")
    return _filled(_OBJECT, schema=schema, join=join, catalog=catalog, name=name, more=more)


_FORMS = {
    '"char"': "({value})::pg_catalog.int4::pg_catalog.text",
    "interval": _INTERVAL,
    "regclass": _object("pg_class", "relname", "relnamespace"),
    "regcollation": _object("pg_collation", "collname", "collnamespace"),
    "regconfig": _object("pg_ts_config", "cfgname", "cfgnamespace"),
    "regdictionary": _object("pg_ts_dict", "dictname", "dictnamespace"),
    "regnamespace": _object("pg_namespace", "nspname"),
    "regoper": _object("pg_operator", "oprname", "oprnamespace"),
    "regoperator": _object(
        "pg_operator",
        "oprname",
        "oprnamespace",
        _filled(_OPERANDS, left=_type("c.oprleft"), right=_type("c.oprright")),
    ),
    "regproc": _object("pg_proc", "proname", "pronamespace"),
    "regprocedure": _object("pg_proc", "proname", "pronamespace", _filled(_ARGUMENTS, type=_type("g.type"))),
    "regrole": _object("pg_roles", "rolname"),
    "regtype": _filled(_REGTYPE, type=_type("x.v::pg_catalog.oid")),
}


def portable(type_name: str) -> sql.SQL | None:
    """The SQL expression for the text of a ``{value}`` of this type that is the same on every major version.

    None where the type's own text is. `type_name` is as `format_type` writes it under an empty search_path, of a domain
    that of its base type. Values that differ have texts that differ, as far as the type's own texts do; NULL stays NULL.
    """
    element = type_name.removesuffix("[]")
    # interval(3), interval day to second(3)
    form = _FORMS.get("interval" if element.startswith(("interval(", "interval ")) else element)
    if form is None:
        return None
    if element == type_name:
        return sql.SQL(form)
    return sql.SQL(_filled(_ARRAY, element=form.replace("{value}", "a.v")))
