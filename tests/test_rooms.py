"""The architecture: a lower room never imports a higher one, and nothing of the package is imported in a function."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tipsomaly"
FLOORS = {  # as in .github/CONTRIBUTING.md, from the ground up; rooms of one number do not import each other
    "errors": 0,
    **{"files": 1, "names": 1},
    **{"data": 2, "models": 2},
    "prompts": 3,
    "detection": 4,
    "studies": 5,
    **{"cli": 6, "service": 6, "distributed": 6},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> list[tuple[str, int]]:
    """The rooms that a module imports from, and the column of each import."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tipsomaly":
            parts = (node.module or "").split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            found += [(name, node.col_offset) for name in names if name in FLOORS]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_room_imports_from_below(path):
    home = room(path)
    if home in ("__init__", "__main__"):
        return
    for other, column in imports(ast.parse(path.read_text(encoding="utf-8"))):
        assert column == 0 or home == "cli", f"{path.name} imports {other} inside a function"
        allowed = other == home or FLOORS[other] < FLOORS[home] or (home == "cli" and other == "distributed")
        assert allowed, f"{home} imports {other}"


def test_no_circle_between_modules():
    graph = {}
    for path in MODULES:
        name = ".".join(("tipsomaly", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
        graph[name] = {node.module for node in imported if node.module != name}
        graph[name] |= {f"{node.module}.{alias.name}" for node in imported for alias in node.names}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name not in done:
            for other in graph[name] & graph.keys() - {"tipsomaly"}:
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_no_file_is_too_long_for_a_reader():
    root = PACKAGE.parent
    files = [*MODULES, root / "app.py", *(root / "hub").rglob("*.py"), *(root / "examples").rglob("*.py")]
    long = {path.relative_to(root).as_posix(): n for path in files if (n := len(path.read_text().splitlines())) > 400}
    assert not long
