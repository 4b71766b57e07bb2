"""The rooms depend on each other in one direction only: experiments -> agent -> env -> placement."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("placement", "env", "agent", "experiments")
FILES = sorted(path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file imports, relatively or by name."""
    rooms = set()
    package = ("segue", *path.parent.parts)
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("segue.")}
    return rooms & set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_only_its_own_room_and_those_below(path: Path) -> None:
    allowed = set(ROOMS[: ROOMS.index(path.parts[0]) + 1])
    assert imported_rooms(path) <= allowed
