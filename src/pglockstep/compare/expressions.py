"""One form for SQL that servers write back in several: whether two expressions are the same expression.

PostgreSQL does not keep what a user typed but what it understood, and writes that back when asked. Restored
from a dump it can read differently: ``((a AND b) AND c)`` becomes ``(a AND b AND c)``, and the cast of a list
becomes a list of casts. Newer servers quote more names. :func:`canonical` undoes just that. It never gives
two different expressions one form, and leaves alone what it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby, pairwise, takewhile
from typing import TypeAlias

_TOKEN = re.compile(
    r"""
    [eE]'(?:[^'\\]|''|\\.)*'   # a string with escapes
    | '(?:[^']|'')*'           # a string in which a backslash is a backslash
    | "(?:[^"]|"")*"           # a quoted name
    | :: | \w+ | \S
    """,
    re.VERBOSE | re.DOTALL,
)
_NEEDLESSLY_QUOTED = re.compile(r'"[a-z_][a-z0-9_]*"')
_CLOSING = {"(": ")", "[": "]"}

#: A token, or a group of nodes in brackets, which are its first and last node.
_Node: TypeAlias = "str | list[_Node]"


def canonical(expression: str) -> str:
    """The form of `expression`, or of a whole definition with expressions in it, to compare it by."""
    tokens = (
        token[1:-1] if _NEEDLESSLY_QUOTED.fullmatch(token) else token for token in _TOKEN.findall(expression)
    )
    return " ".join(_words(_rewritten(_tree(tokens))))


def _tree(tokens: Iterator[str], opening: str = "") -> list[_Node]:
    nodes: list[_Node] = [opening] if opening else []
    for token in tokens:
        nodes.append(_tree(tokens, token) if token in _CLOSING else token)
        if token == _CLOSING.get(opening):
            break
    return nodes


def _words(nodes: list[_Node]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
        else:
            yield from _words(node)


def _rewritten(nodes: list[_Node]) -> list[_Node]:
    nodes = [node if isinstance(node, str) else _rewritten(node) for node in nodes]
    return _each_cast(_flat(_flat(nodes, "AND"), "OR"))


def _flat(nodes: list[_Node], connective: str) -> list[_Node]:
    """Open the groups that are whole operands of `connective` and consist of its operands themselves."""
    flat: list[_Node] = []
    for before, node, after in zip(["(", *nodes], nodes, [*nodes[1:], ")"], strict=False):
        operand = connective in (before, after) and all(n in (connective, "(", ")") for n in (before, after))
        if operand and isinstance(node, list) and [n for n in ("AND", "OR") if n in node] == [connective]:
            flat += node[1:-1]
        else:
            flat.append(node)
    return flat


def _each_cast(nodes: list[_Node]) -> list[_Node]:
    """Write ``(ARRAY[a, b])::text[]`` as ``ARRAY[(a)::text, (b)::text]``."""
    for start, pair in enumerate(pairwise(nodes)):
        match pair:
            case (["(", "ARRAY", ["[", *values, "]"], ")"], "::"):
                type_name = list(takewhile(_names_a_type, nodes[start + 2 :]))
                end = start + 2 + len(type_name)
                if nodes[end : end + 1] == [["[", "]"]]:
                    cast: list[_Node] = ["["]
                    for is_comma, value in groupby(values, ",".__eq__):
                        cast += [","] if is_comma else [["(", *value, ")"], "::", *type_name]
                    return [*nodes[:start], "ARRAY", [*cast, "]"], *_each_cast(nodes[end + 1 :])]
    return nodes


def _names_a_type(node: _Node) -> bool:
    if isinstance(node, list):
        return node[0] == "("
    return node == "." or node[0] == '"' or node.isidentifier()
