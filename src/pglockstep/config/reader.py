"""From TOML text to typed values, with a line for every complaint.

What a key takes and means stands at its field, in :class:`msgspec.Meta`: `title` is what is expected,
`description` is for the docs, and these `extra` entries are known here: ``check`` (a function that
returns the value to keep, or raises :class:`Wrong`), ``secret`` (never shown), ``expand`` (``${NAME}`` and
``${file:/path}`` stand for a value kept elsewhere) and ``computed`` (a default that depends on the machine,
in words). Nothing here knows what the values are for.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import msgspec

from pglockstep.errors import ConfigError
from pglockstep.units import ByteSize, Duration

#: A place in the file: the names of the tables from the top, then the key.
Where = tuple[str, ...]


class Wrong(ValueError):
    """A value that its key does not take: why, and what to write instead."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


class Section(msgspec.Struct, frozen=True):
    """One table of the file; whatever is secret in it is left out of its `repr`."""

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        plain = (field.name for field in msgspec.structs.fields(self) if not about(field.type).secret)
        return [(name, getattr(self, name)) for name in plain]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"


S = TypeVar("S", bound=Section)


class About(NamedTuple):
    """What is known of a key from the annotation of its field."""

    kind: Any
    choices: bool
    expected: str
    description: str
    example: Any
    computed: str
    check: Callable[[Any], Any] | None
    secret: bool
    expand: bool


def about(annotation: Any) -> About:
    """Read the annotation of a field."""
    metas: list[msgspec.Meta] = []
    kind = annotation
    while (origin := get_origin(kind)) in (Annotated, Union, UnionType):
        kind, *more = get_args(kind)
        metas += more if origin is Annotated else []
    extra = {name: entry for meta in metas for name, entry in (meta.extra or {}).items()}
    return About(
        kind=kind,
        choices=get_origin(kind) is Literal,
        expected=next((meta.title for meta in reversed(metas) if meta.title), None) or _expected(kind),
        description=next((meta.description for meta in reversed(metas) if meta.description), ""),
        example=next((meta.examples[0] for meta in reversed(metas) if meta.examples), None),
        computed=extra.get("computed", ""),
        check=extra.get("check"),
        secret=extra.get("secret", False),
        expand=extra.get("expand", False),
    )


def is_section(kind: Any) -> bool:
    """Whether `kind` is a table with keys of ours."""
    return isinstance(kind, type) and issubclass(kind, Section)


def _expected(kind: Any) -> str:
    if get_origin(kind) is Literal:
        *most, last = (toml(choice) for choice in get_args(kind))
        return f"{', '.join(most)} or {last}"
    if get_origin(kind) is tuple:
        return "a list of strings"
    return {str: "a string", bool: "true or false", Path: "a path"}.get(kind, "a table")


class Reader:
    """Reads one file; every complaint is a :class:`ConfigError` that begins with FILE:LINE."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self.path = path
        self.environ = environ
        self.text = self._read()
        try:
            self.raw: dict[str, Any] = tomllib.loads(self.text)
        except (ValueError, RecursionError) as error:
            said, _, at = str(error).rstrip(")").partition(" (at ")
            place = re.fullmatch(r"line (\d+), (column \d+)", at)
            line = int(place[1]) if place else self.text.count("\n") + 1
            column = f", {place[2]}" if place else ""
            hint = "write one key = value on a line, and every text in quotes"
            raise self._error_at(line, f"this is not TOML: {said}{column}", hint) from None

    def _read(self) -> str:
        try:
            data = self.path.read_bytes()
        except OSError as error:
            hint = "name the file with -c, and let the user that runs pglockstep read it"
            raise ConfigError(f"cannot read {self.path}: {error.strerror}", hint=hint) from None
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise self._error_at(line, "this is not UTF-8", "save the file as UTF-8") from None

    def _error_at(self, line: int, message: str, hint: str) -> ConfigError:
        return ConfigError(f"{self.path}:{line}: {message}", hint=hint)

    def error(self, where: Where, message: str, hint: str = "") -> ConfigError:
        """The error for what stands at `where`, or is missing below it."""
        return self._error_at(line_of(key_lines(self.text), where), message, hint)

    def section(self, kind: type[S], raw: object, where: Where, **given: object) -> S:
        """Read one table; `given` are fields that are not keys."""
        if not isinstance(raw, dict):
            raise self._not_a_table(raw, where)
        fields = {field.name: field for field in msgspec.structs.fields(kind) if field.name not in given}
        for key in raw:
            if key not in fields:
                hint = nearest(key, fields) or f"the keys here are {', '.join(fields)}"
                raise self.error((*where, key), f"{named((*where, key))} is not a known key", hint)
        for field in fields.values():
            here = (*where, field.name)
            if field.name in raw:
                given[field.name] = self._value(field.type, raw[field.name], here, field.default)
            elif field.required:
                says = about(field.type)
                hint = f"for example: {field.name} = {toml(says.example)}"
                raise self.error(where, f"{named(here)} is missing; expected {says.expected}", hint)
        return kind(**given)

    def _value(self, annotation: Any, raw: object, where: Where, default: object = None) -> Any:
        says = about(annotation)
        if is_section(says.kind):
            return self.section(says.kind, raw, where)
        if get_origin(says.kind) is dict:
            return self._map(says.kind, raw, where)
        try:
            value = msgspec.convert(raw, annotation, dec_hook=_parse)
            value = self._expand(value) if says.expand else value
            return says.check(value) if says.check else value
        except (Wrong, msgspec.ValidationError) as error:
            # A type that msgspec does not know gives its reason as the cause.
            wrong = error if isinstance(error, Wrong) else error.__cause__
            raise self._refusal(says, raw, where, default, wrong) from None

    def _refusal(
        self, says: About, raw: object, where: Where, default: object, wrong: BaseException | None
    ) -> ConfigError:
        if str(wrong or ""):
            return self.error(where, f"{named(where)}: {wrong}", getattr(wrong, "hint", ""))
        found = _kind(raw) if says.secret else shown(raw)
        hint = nearest(raw, get_args(says.kind)) if says.choices and isinstance(raw, str) else ""
        example = default if says.example is None else says.example
        if not hint and isinstance(example, (bool, int, float, str, tuple)):
            hint = f"for example: {where[-1]} = {toml(example)}"
        return self.error(where, f"{named(where)} is {found}; expected {says.expected}", hint)

    def _map(self, mapping: Any, raw: object, where: Where) -> dict[Any, Any]:
        """Read a table whose keys are the user's own; a section in it learns its `name` from its key."""
        if not isinstance(raw, dict):
            raise self._not_a_table(raw, where)
        key_type, value_type = get_args(mapping)
        check = about(key_type).check or str
        kind = about(value_type).kind
        result: dict[Any, Any] = {}
        for text, value in raw.items():
            here = (*where, text)
            if is_section(kind) and not isinstance(value, dict):
                raise self._not_a_table(value, here, (*where, "NAME"))
            try:
                key = check(text)
            except Wrong as error:
                raise self.error(here, f"{named(here)}: {error}", error.hint) from None
            if key in result:
                raise self.error(here, f"{named(here)} stands here a second time", "remove one of the two")
            if is_section(kind):
                given = {"name": key} if "name" in kind.__struct_fields__ else {}
                result[key] = self.section(kind, value, here, **given)
            else:
                result[key] = self._value(value_type, value, here)
        return result

    def _not_a_table(self, raw: object, where: Where, meant: Where = ()) -> ConfigError:
        message = f"{named(where)} is {_kind(raw)}; expected a table"
        return self.error(where, message, f"write [{header(meant or where)}], and its keys below it")

    def _expand(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._expand, value))
        return re.sub(r"\$\{([^}]*)\}", lambda found: self._stands_for(found[1]), value)

    def _stands_for(self, name: str) -> str:
        if name.startswith("file:/"):
            value = _secret_in(Path(name.removeprefix("file:")))
        elif not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise Wrong("it holds a ${…} that names nothing", "write ${NAME} or ${file:/path}")
        elif name not in self.environ:
            raise Wrong(f"the environment has no {name}", f"set {name} for the process that runs pglockstep")
        else:
            value = self.environ[name]
        if not value:
            raise Wrong(f"${{{name}}} is empty", "give it a value, or remove this key")
        return value


def _secret_in(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        hint = "create the file, and let the user that runs pglockstep read it"
        raise Wrong(f"cannot read {path}: {reason}", hint) from None


def _parse(kind: Any, raw: object) -> Any:
    """Build the types that msgspec does not know; a value without a word of its own raises an empty error."""
    if not isinstance(raw, str) or not raw or "\0" in raw:
        raise ValueError
    return Path(raw) if kind is Path else kind.parse(raw)


# --- how things are written -------------------------------------------------------------------------------


def toml(value: object) -> str:
    """`value` as one would write it in the file."""
    match value:
        case bool():
            return str(value).lower()
        case Duration() | ByteSize() | Path():
            return toml(str(value))
        case str():
            literal = '"' in value and "'" not in value and value.isprintable()
            return f"'{value}'" if literal else json.dumps(value, ensure_ascii=False)
        case msgspec.Struct():
            return toml(msgspec.structs.asdict(value))
        case Mapping():
            inside = ", ".join(f"{_key(str(key))} = {toml(entry)}" for key, entry in value.items())
            return f"{{ {inside} }}" if inside else "{}"
        case tuple() | list():
            return f"[{', '.join(map(toml, value))}]"
        case _:
            return str(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml(name)


def header(where: Where) -> str:
    """The name of a table, as its header has it between the brackets."""
    return ".".join(map(_key, where))


def named(where: Where) -> str:
    """A key, with the table that it stands in."""
    *tables, key = where
    return f"{_key(key)} in [{header(tuple(tables))}]" if tables else _key(key)


def shown(value: object) -> str:
    """A value that was found, in few words."""
    if isinstance(value, (str, bool, float)) or (isinstance(value, list) and {*map(type, value)} <= {str}):
        text = toml(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    return str(value) if isinstance(value, int) and abs(value) < 1 << 63 else _kind(value)


def _kind(value: object) -> str:
    kinds = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list"}
    return kinds.get(type(value), "a table" if isinstance(value, dict) else "a date or time")


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint with the name that was probably meant, or nothing."""
    close = difflib.get_close_matches(name.lower(), names, n=1)
    return f"did you mean {close[0]}?" if close else ""


# --- where things stand -----------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""
    (?P<skip>[ \t\r]+|\#[^\n]*)
    | (?P<quoted>\"{3}(?:\\.|[^\\])*?\"{3,5}|'{3}.*?'{3,5}|"(?:\\.|[^"\\\n])*"|'[^'\n]*')
    | (?P<mark>[\[\]{}=,.\n])
    | (?P<bare>[^\s\[\]{}=,."'\#]+)
    """,
    re.VERBOSE | re.DOTALL,
)


def key_lines(text: str) -> dict[Where, int]:
    """The line of every table and key in `text`, which tomllib has accepted already."""
    tokens: deque[tuple[str, int]] = deque()
    line = 1
    for found in _TOKEN.finditer(text):
        if found.lastgroup != "skip":
            tokens.append((found[0], line))
        line += found[0].count("\n")
    tokens.append(("\n", line))
    lines: dict[Where, int] = {}

    def skip(marks: str) -> str:
        while tokens and tokens[0][0] in marks:
            tokens.popleft()
        return tokens[0][0] if tokens else ""

    def key(table: Where) -> Where:
        at = tokens[0][1]
        while (name := tokens.popleft()[0]) not in ("=", "]"):
            if name != ".":
                table = (*table, *tomllib.loads(f"{name} = 0"))
        lines.setdefault(table, at)
        return table

    def value(where: Where) -> None:
        opening = tokens.popleft()[0]
        if opening == "{":
            while skip("\n,") != "}":
                value(key(where))
            tokens.popleft()
        elif opening == "[":
            while skip("\n,") != "]":
                value(where)
            tokens.popleft()
        else:
            while tokens[0][0] not in (",", "]", "}", "\n"):
                tokens.popleft()

    table: Where = ()
    while first := skip("\n"):
        if first == "[":
            skip("[")
            table = key(())
            skip("]")
        else:
            value(key(table))
    return lines


def line_of(lines: Mapping[Where, int], where: Where) -> int:
    """The line of `where`; if it has none, that of the nearest table around it."""
    for depth in range(len(where), 0, -1):
        inside = [line for path, line in lines.items() if path[:depth] == where[:depth]]
        if inside:
            return lines.get(where[:depth], min(inside))
    return 1
