"""The house: rooms on floors, and who may import what."""

from __future__ import annotations

import ast
from pathlib import Path

import shardkit as sk

PACKAGE = Path(sk.__file__).parent


def modules() -> dict[str, Path]:
    """All modules of the package by name; what ``init`` writes for users is none."""
    paths = [path for path in PACKAGE.rglob("*.py") if "templates" not in path.relative_to(PACKAGE).parts]
    return {".".join(["shardkit", *path.relative_to(PACKAGE).with_suffix("").parts]): path for path in paths}


def imports_of(path: Path) -> set[str]:
    """Every name of a module that a file imports: within functions, and for type checkers only, too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, path
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


IMPORTS = {name: imports_of(path) for name, path in modules().items()}


def users_of(package: str) -> set[str]:
    return {
        name.removeprefix("shardkit.")
        for name, imported in IMPORTS.items()
        if any(target.split(".")[0] == package for target in imported)
    }


def test_only_the_command_line_knows_click() -> None:
    assert users_of("click") == {"cli.app", "cli.jobs", "cli.commands"}
