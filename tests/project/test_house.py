"""The house: rooms on floors, no circles, and who may import what."""

from __future__ import annotations

import ast
import functools
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import shardkit as sk

PACKAGE = Path(sk.__file__).parent
# A room may import those that stand above it here, and itself; never one that stands below.
ROOMS = (
    "base",
    "pages",
    "tables",
    "storage",
    "inside",
    "runfolder",
    "plan",
    "dataset",
    "workers",
    "clusters",
    "steps",
    "jobs",
    "engines",
    "spec",
    "runs",
    "pipeline",
    "workflows",
    "cli",
    "package",
)
# What stands at the top of the package, and is a room of its own or belongs to one.
TOP = {
    "": "package",
    "__main__": "cli",
    "_lazy": "base",
    "_version": "base",
    "cache": "base",
    "carried": "base",
    "checksums": "base",
    "collector": "base",
    "errors": "base",
    "explain": "base",
    "functions": "base",
    "held": "base",
    "hints": "base",
    "macro": "steps",
    "masking": "base",
    "micro": "steps",
    "notes": "base",
    "pass1_preprocessing": "steps",
    "pass2_combine": "steps",
    "pipeline": "pipeline",
    "plugins": "base",
    "printable": "base",
    "record": "base",
    "templates": "cli",
    "times": "base",
    "tracebacks": "base",
    "traits": "base",
    "units": "base",
    "user_state": "base",
}


def modules() -> dict[str, Path]:
    """All modules of the package, without its name; what ``init`` writes for users is none."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] != "templates" or len(parts) == 2:
            names[".".join(parts).removesuffix("__init__").rstrip(".")] = path
    return names


MODULES = modules()


def imports_of(path: Path) -> set[str]:
    """Every name that a module imports: within functions and for type checkers only, too.

    What a module does as a program is left out: then it stands above all others.
    """
    tree = ast.parse(path.read_text())
    tree.body = [
        node for node in tree.body if not isinstance(node, ast.If) or ast.unparse(node.test) != "__name__ == '__main__'"
    ]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, path
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@functools.cache
def imports() -> dict[str, set[str]]:
    """What each module imports: read when it is first needed, for each process of tests collects all of them."""
    return {name: imports_of(path) for name, path in MODULES.items()}


def module_of(target: str) -> str | None:
    """The module of the package that an import is of, if it is one."""
    first, *parts = target.split(".")
    if first != "shardkit":
        return None
    return next(name for n in range(len(parts), -1, -1) if (name := ".".join(parts[:n])) in MODULES)


@functools.cache
def needs() -> dict[str, set[str]]:
    """The modules of the package that each module imports."""
    return {
        name: {module for target in imported if (module := module_of(target)) is not None} - {name}
        for name, imported in imports().items()
    }


def room_of(module: str) -> str:
    first = module.partition(".")[0]
    return TOP.get(first, first)


def circle(needs: dict[str, set[str]]) -> list[str]:
    """Names that need each other in a circle, if there are any."""
    left = {name: others - {name} for name, others in needs.items()}
    while free := [name for name, others in left.items() if not others & set(left)]:
        for name in free:
            del left[name]
    return sorted(left)


def test_every_module_has_a_room() -> None:
    assert {room_of(name) for name in MODULES} == set(ROOMS)
    assert set(TOP) <= {name.partition(".")[0] for name in MODULES}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_none_that_stands_over_it(room: str) -> None:
    over = ROOMS[ROOMS.index(room) + 1 :]
    uphill = [
        (name, other)
        for name, others in needs().items()
        if room_of(name) == room
        for other in others
        if room_of(other) in over and not (other == "" and name != "")
    ]
    assert not uphill


def test_no_module_is_in_a_circle() -> None:
    # A package's own names, such as `shardkit.run` and `shardkit.storage.folder`, are for users alone.
    fronts = {"", "storage", "runfolder", "cli"}
    assert not circle({name: others for name, others in needs().items() if name not in fronts})


def test_the_package_does_not_use_its_own_front() -> None:
    users = {name: needs()[name] & {"", "storage", "runfolder", "cli"} for name in needs()}
    assert {name: fronts for name, fronts in users.items() if fronts and name not in {"__main__"}} == {}


def users_of(package: str) -> set[str]:
    return {name for name, imported in imports().items() if any(target.split(".")[0] == package for target in imported)}


def test_only_the_command_line_knows_click() -> None:
    assert users_of("click") <= {name for name in MODULES if room_of(name) == "cli"}


def test_only_some_modules_know_boto3() -> None:
    outside = {name for name in users_of("boto3") | users_of("botocore") if room_of(name) not in {"engines", "jobs"}}
    assert outside == {
        "cli.jobs_look",
        "storage.aws_locations",
        "storage.buckets",
        "storage.large_copy",
    }


# The page and the picture that newcomers read, docs/architecture.md and docs/architecture.svg.
ROOT = PACKAGE.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
CHANGES = (
    "a pipeline field",
    "an output format",
    "a way to cut files",
    "an engine",
    "training jobs",
    "what starts a driver",
    "a cluster",
    "a store",
    "a format of lists",
    "what a record is",
    "how the function is called",
    "a check of new files",
    "a chunk rule",
    "a retry rule",
    "how memory is shared",
    "where rows come from",
    "a number in `status`",
    "a field of a run's documents",
    "a notification target",
    "a CLI command",
    "a report",
    "a table catalogue",
    "a schedule",
    "a field of a workflow",
    "a manifest for Kubernetes",
)


def rows_under(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of the page."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def paths_in(text: str) -> set[str]:
    """The files and folders that a text names."""
    return set(re.findall(r"`([\w./-]+(?:\.py|\.md|\.svg|/))`", text))


def test_every_file_that_the_page_names_exists() -> None:
    paths = paths_in(PAGE)
    assert {path for path in paths if not ((ROOT / path).exists() or (PACKAGE / path).exists())} == set()
    assert {f"{name}.py" for name, room in TOP.items() if room == "steps"} < paths


def test_the_page_and_the_picture_have_all_rooms_in_their_order() -> None:
    from_the_roof = list(reversed(ROOMS))
    assert [room.strip("`") for room, *_ in rows_under("Who may import what")] == from_the_roof
    assert [room for room, _ in runpy.run_path(str(ROOT / "scripts" / "architecture"))["HOUSE"]] == from_the_roof
    folders = {f"{name}/" for name in ROOMS if (PACKAGE / name).is_dir()}
    assert folders <= paths_in(PAGE)


def test_the_picture_is_up_to_date() -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "architecture", "--check"], check=True)


def test_the_page_says_where_to_make_each_usual_change() -> None:
    rows = rows_under("Where to change what")
    assert tuple(what for what, *_ in rows) == CHANGES
    for what, code, tests, page in rows:
        assert paths_in(code), what
        assert any(path.startswith("tests/") for path in paths_in(tests)), what
        assert ".md" in page, what


def test_every_module_and_function_fits() -> None:
    """A module has one subject, and a function can be seen at once."""
    long_modules = [name for name, path in MODULES.items() if len(path.read_text().splitlines()) > 400]
    long_functions = [
        f"{name}.{node.name}"
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert not long_modules
    assert not long_functions
