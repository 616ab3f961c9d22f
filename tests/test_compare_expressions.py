"""Expressions are compared by what they say, however servers spell them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pglockstep.compare.expressions import canonical


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("((a AND b) AND c)", "(a AND b AND c)"),
        ("(a OR (b OR (c = 1)))", "(a OR b OR (c = 1))"),
        (
            "((s)::text = ANY ((ARRAY['x'::character varying, 'y, ('::character varying])::text[]))",
            "((s)::text = ANY (ARRAY[('x'::character varying)::text, ('y, ('::character varying)::text]))",
        ),
        ("(jsonb_typeof(\"json\") = 'a'::text)", "(jsonb_typeof(json) = 'a'::text)"),
    ],
)
def test_known_spellings_of_one_expression_are_one(one: str, other: str) -> None:
    """What a dump and a restore, or another version, make of an expression is still that expression."""
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("((a AND b) OR c)", "(a AND (b OR c))"),
        ("(NOT (a AND b) AND c)", "(NOT a AND b AND c)"),
        ("(f(a AND b) AND c)", "(fa AND b AND c)"),
        ("'(a AND b) AND c'::text", "'a AND b AND c'::text"),
        ("'a  b'", "'a b'"),
        ("'a\\' = b", "'a\\'' = b"),
        ('"User"', '"user"'),
        ("(ARRAY['x'::text])::mood[]", "(ARRAY['x'::text])::text[]"),
        ("(a + (b * c))", "((a + b) * c)"),
    ],
)
def test_different_expressions_stay_different(one: str, other: str) -> None:
    """Nothing that decides what an expression means is lost in the form to compare it by."""
    assert canonical(one) != canonical(other)


TREES = st.recursive(
    st.sampled_from(["a", "b", "(c = 1)"]),
    lambda children: st.tuples(st.sampled_from(["AND", "OR"]), st.lists(children, min_size=2, max_size=3)),
    max_leaves=8,
)
Tree = str | tuple[str, list["Tree"]]


def spelled(tree: Tree) -> str:
    return tree if isinstance(tree, str) else f"({f' {tree[0]} '.join(map(spelled, tree[1]))})"


def flattened(tree: Tree) -> Tree:
    if isinstance(tree, str):
        return tree
    operands: list[Tree] = []
    for each in map(flattened, tree[1]):
        operands += each[1] if not isinstance(each, str) and each[0] == tree[0] else [each]
    return tree[0], operands


@given(TREES, TREES)
def test_conditions_are_alike_exactly_when_they_nest_alike(one: Tree, other: Tree) -> None:
    """Random conditions: nesting within one connective is forgotten, everything else is kept."""
    assert canonical(spelled(one)) == canonical(spelled(flattened(one)))
    assert (canonical(spelled(one)) == canonical(spelled(other))) == (flattened(one) == flattened(other))


@given(st.text())
def test_any_text_has_a_form(text: str) -> None:
    """Text that is not well-formed SQL is no reason to fail, and its form is final."""
    assert canonical(canonical(text)) == canonical(text)
