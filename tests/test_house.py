"""The house itself: floors, sizes, and that what is promised to users is documented."""

from __future__ import annotations

import ast
from pathlib import Path

import pglockstep
from pglockstep.errors import EXIT_CODES, EXIT_PRECEDENCE

SOURCE = Path(pglockstep.__file__).parent
DOCS = SOURCE.parent.parent / "docs"

#: Each room and its floor; a room imports from floors below its own, and from itself.
FLOORS = {
    "errors": 0,
    "failpoints": 0,
    "findings": 0,
    "threads": 0,
    "units": 0,
    "compiled": 0,
    "config": 0,
    "postgres": 1,
    "wal": 2,
    "journal": 2,
    "progress": 2,
    "observe": 2,
    "copy": 3,
    "apply": 3,
    "compare": 3,
    "guard": 3,
    "link": 4,
    "doctor": 4,
    "daemon": 5,
    "demo": 6,  # the command line tells its story
    "cli": 7,
}


def room_of(path: Path) -> str:
    """The room that a module stands in."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a module imports from."""
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pglockstep."):
            rooms.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "pglockstep":
            rooms |= {alias.name for alias in node.names if alias.name in FLOORS}
    return rooms


def modules() -> list[Path]:
    """Every module of the package, but for the two at its door."""
    return [path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or room_of(path) in FLOORS]


def test_rooms_import_only_from_floors_below() -> None:
    """A newcomer can read the architecture from the folders, because imports keep to it."""
    wrong = [
        f"{path.relative_to(SOURCE)} imports {other}"
        for path in modules()
        for other in imported_rooms(path)
        if other != room_of(path) and FLOORS[other] >= FLOORS[room_of(path)] > 0
    ]
    assert not wrong, wrong


def test_every_room_has_a_floor() -> None:
    """A new room is given its floor here, on purpose."""
    rooms = {room_of(path) for path in SOURCE.rglob("*.py")} - {"__init__", "__main__"}
    assert rooms == set(FLOORS)


def test_modules_stay_small_and_say_what_they_promise() -> None:
    """400 lines at the most, each with a docstring."""
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        assert ast.get_docstring(ast.parse(text)), path


def test_exit_codes_are_documented() -> None:
    """Every exit code has a meaning, a rank among others, and a line in the documentation."""
    assert set(EXIT_PRECEDENCE) == set(EXIT_CODES)
    text = (DOCS / "commands.md").read_text()
    for code, meaning in EXIT_CODES.items():
        assert f"| {code} | {meaning} |" in text
