"""The user's functions: how they are named, sent to workers, compared by their source, and loaded.

A function travels by reference (``module:callable``, found in a source folder) or, if a worker could not
import it (a notebook cell, ``__main__``, a lambda, something local), by value.
"""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

from shardkit.carried import Carried, warn_if_large
from shardkit.errors import PipelineError
from shardkit.tracebacks import user_traceback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


@dataclass(frozen=True)
class FunctionRef:
    """A callable that another process can load.

    ``name`` is ``module:callable``, ``source_dir`` the folder in which the module is looked for first, ``pickled`` the
    callable itself if it travels by value. ``digest`` differs between two versions of its source. ``awaits`` says that
    it is an ``async def``, as far as its source tells.
    """

    name: str
    source_dir: str | None
    digest: str
    pickled: bytes | None = None
    awaits: bool = False

    def load(self, *, make: Callable[[type], Any] | None = None) -> Callable[..., Any]:
        """The callable itself; a class is instantiated, by ``make`` if that is given.

        Raises:
            PipelineError: it cannot be imported, or is not callable.
        """
        try:
            function = (
                pickle.loads(self.pickled)  # noqa: S301  it is the user's own
                if self.pickled is not None
                else _import(self.name, self.source_dir)
            )
            if isinstance(function, Carried):
                function = function.unpack(_used_by)
            if inspect.isclass(function):
                function = make(function) if make is not None else function()
        except (Exception, SystemExit) as error:
            raise PipelineError(
                f"function: {self.name} cannot be loaded: {type(error).__name__}: {error}.\n"
                f"{user_traceback(error)}".rstrip(),
                hint="Mend the module, or install what it imports.",
            ) from error
        if not callable(function):
            raise PipelineError(f"{self.name} is {type(function).__name__}, which cannot be called.")
        return function  # type: ignore[no-any-return]


def reference(function: str | Callable[..., Any], *, source_dir: str | os.PathLike[str] | None = None) -> FunctionRef:
    """Make a reference from ``module:callable`` or from the callable itself.

    No code of the user is imported: a named function is looked for in the source of its module.

    Raises:
        PipelineError: there is no such module, or it defines no such name.
    """
    folder = os.path.abspath(source_dir) if source_dir is not None else None
    if isinstance(function, str):
        return _by_name(function, folder)
    if not callable(function):
        raise PipelineError(f"function: {function!r} cannot be called.", hint="Give a function, or 'module:callable'.")
    return _by_value(function) if _only_by_value(function) else _from_module(function)


def is_async(function: Any) -> bool:
    """Whether what a function, or an object of a class, gives has to be awaited."""
    if inspect.isclass(function) or not (inspect.isroutine(function) or isinstance(function, functools.partial)):
        function = getattr(function if inspect.isclass(function) else type(function), "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def python_version() -> str:
    """The minor version of Python, within which a function can travel by value."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def split_name(name: str) -> tuple[str, str]:
    """``module:callable`` as its two halves."""
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute) or "/" in module or module.endswith(".py"):
        raise PipelineError(
            f"function: {name!r} is not of the form module:callable.",
            hint="For a function rows in the file features.py write features:rows.",
        )
    return module, attribute


def _by_name(name: str, source_dir: str | None) -> FunctionRef:
    module, attribute = split_name(name)
    file = _module_file(module, source_dir or os.getcwd())
    if file is None:
        if (installed := _installed(module)) is not None:
            return FunctionRef(name, source_dir, _sha256(name.encode(), installed))
        where = source_dir or os.getcwd()
        near = difflib.get_close_matches(module, [p.stem for p in Path(where).glob("*.py")], n=1)
        raise PipelineError(
            f"function: no module {module!r} in {where}, nor among the installed packages.",
            hint=f"Did you mean {near[0]}:{attribute}?" if near else "Set source_dir to the folder that holds it.",
        )
    awaits = _check_defines(file, attribute, name)
    folder = source_dir or os.getcwd()
    return FunctionRef(name, folder, source_digest(file, folder), awaits=awaits)


def _installed(module: str) -> bytes | None:
    """The source of an installed module, empty if it has none; None if there is no such module."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    return Path(spec.origin).read_bytes() if spec.origin and os.path.isfile(spec.origin) else b""


def _module_file(module: str, folder: str) -> Path | None:
    path = Path(folder, *module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def _check_defines(file: Path, attribute: str, name: str) -> bool:
    """Check that a module defines a function; returns whether it is an ``async def``, or a class whose calls are.

    Raises:
        PipelineError: it does not.
    """
    try:
        tree, names, complete = _top_level(file.read_bytes())
    except SyntaxError as error:
        raise PipelineError(f"function: {file} line {error.lineno} is not valid Python: {error.msg}.") from None
    first = attribute.split(".", maxsplit=1)[0]
    if complete and first not in names:
        near = difflib.get_close_matches(first, sorted(names), n=1)
        raise PipelineError(
            f"function: {file} defines no {first!r} (asked for as {name}).",
            hint=f"Did you mean {split_name(name)[0]}:{near[0]}?" if near else "",
        )
    node: ast.AST | None = tree
    for part in attribute.split("."):
        node = _defined_in(node, part)
    return isinstance(_defined_in(node, "__call__") if isinstance(node, ast.ClassDef) else node, ast.AsyncFunctionDef)


def _defined_in(node: ast.AST | None, name: str) -> ast.AST | None:
    """What a module or a class defines by that name."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    inside = [each for each in getattr(node, "body", ()) if isinstance(each, kinds) and each.name == name]
    return inside[-1] if inside else None


@functools.lru_cache(maxsize=64)
def _top_level(source: bytes) -> tuple[ast.Module, frozenset[str], bool]:
    """A module's tree, the names that it binds, and whether there can be no others (by a star import, ...)."""
    tree = ast.parse(source)
    names: set[str] = set()
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            names.update(name for inner in ast.walk(node) if isinstance(inner, ast.Global) for name in inner.names)
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        nodes.extend(ast.iter_child_nodes(node))
    dynamic = any(isinstance(node, ast.Name) and node.id in {"globals", "exec", "vars"} for node in ast.walk(tree))
    return tree, frozenset(names), not dynamic and not names & {"*", "__getattr__"}


def source_digest(file: Path, source_dir: str) -> str:
    """The sha256 of a module's source and of every module under ``source_dir`` that it imports, transitively."""
    sources = _sources(file, source_dir)
    return _sha256(*(part for name in sorted(sources) for part in (name.encode(), sources[name])))


def _sources(file: Path, source_dir: str) -> dict[str, bytes]:
    """A module's source and those of the modules that it imports from ``source_dir``, by their paths in there."""
    sources: dict[str, bytes] = {}
    queue = [file.resolve()]
    while queue:
        path = queue.pop()
        name = os.path.relpath(path, Path(source_dir).resolve())
        if name in sources:
            continue
        sources[name] = path.read_bytes()
        if not is_library(source_dir):
            queue.extend(_local_imports(path, sources[name], source_dir))
    return sources


def is_library(folder: str) -> bool:
    """Whether ``folder`` holds installed packages, which change with their version and not while the user works."""
    return os.path.basename(folder) in {"site-packages", "dist-packages"} or folder == os.path.dirname(os.__file__)


def _local_imports(path: Path, source: bytes, source_dir: str) -> list[Path]:
    package = os.path.relpath(path.parent, Path(source_dir).resolve()).replace(os.sep, ".").strip(".")
    parts = {".".join(m.split(".")[:n]) for m in _imports_of(source, package) for n in range(1, m.count(".") + 2)}
    return [file.resolve() for m in parts if (file := _module_file(m, source_dir))]


@functools.lru_cache(maxsize=1024)
def _imports_of(source: bytes, package: str) -> frozenset[str]:
    """The modules that a source in a package may import; parsed once, because a process may make many runs of it."""
    modules: set[str] = set()
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return frozenset()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join(filter(None, [*parents, base]))
            modules.add(base)
            modules.update(f"{base}.{alias.name}".strip(".") for alias in node.names)
    return frozenset(modules - {""})


def _only_by_value(function: Callable[..., Any]) -> bool:
    """Whether a fresh process could not import ``function`` by its name."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not module or module == "__main__" or not name or "<" in name or module not in sys.modules:
        return True
    value: Any = sys.modules[module]
    for part in name.split("."):
        value = getattr(value, part, None)
    return value is not function or getattr(sys.modules[module], "__file__", None) is None


def _by_value(function: Callable[..., Any]) -> FunctionRef:
    import cloudpickle

    name = name_of(function)
    try:
        pickled = cloudpickle.dumps(Carried.of(function, _used_by))
    except Exception as error:
        raise PipelineError(
            f"function: {name} cannot be sent to the workers by value: {type(error).__name__}: {error}.",
            hint="It refers to something that cannot be pickled (an open file, a lock, a connection): make that "
            "inside the function, or use a class, which is instantiated once per worker.",
        ) from error
    warn_if_large(name, len(pickled), _used_by(function))
    return FunctionRef(name, None, _sha256(*_traits(function, set())), pickled, awaits=is_async(function))


def name_of(function: Callable[..., Any]) -> str:
    """``module:callable`` of a function, or of an object's class."""
    return f"{getattr(function, '__module__', '__main__')}:{getattr(function, '__qualname__', type(function).__name__)}"


def _traits(value: Any, seen: set[int]) -> Iterator[bytes]:
    """The ways in which two versions of a value that is sent may differ: its source, and the values that it uses.

    Its pickle is no measure: that differs from process to process.
    """
    if isinstance(value, str | bytes | int | float | complex | None):
        yield repr(value).encode()
    elif id(value) not in seen:
        seen.add(id(value))
        if isinstance(value, functools.partial):
            parts: Any = [value.func, *value.args, *value.keywords.items()]
        elif isinstance(value, list | tuple | dict):
            parts = value.items() if isinstance(value, dict) else value
        elif inspect.ismethod(value):
            parts = [value.__self__, value.__func__]
        elif inspect.isclass(value) or inspect.isfunction(value):
            yield _source_of(value)
            parts = _used_by(value) if inspect.isfunction(value) and _only_by_value(value) else []
        else:
            parts = [type(value), getattr(value, "__dict__", {})]
        for part in parts:
            yield from _traits(part, seen)


def _source_of(value: Any) -> bytes:
    try:
        return inspect.getsource(value).encode()
    except (OSError, TypeError):
        return _behaviour_of(value.__code__) if inspect.isfunction(value) else value.__qualname__.encode()


def _behaviour_of(code: CodeType) -> bytes:
    """The code of a function without a source, which was typed at a prompt or made by ``exec``."""
    constants = [_behaviour_of(value) if isinstance(value, CodeType) else _constant(value) for value in code.co_consts]
    return b"\0".join([code.co_code, *(name.encode() for name in code.co_names), *constants])


def _constant(value: Any) -> bytes:
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value).encode()


def _used_by(function: Any) -> list[tuple[str, Any]]:
    """The variables outside of a function that it refers to."""
    try:
        around = inspect.getclosurevars(function)
    except (TypeError, ValueError):
        return []
    used = {**around.globals, **around.nonlocals}
    return [(name, used[name]) for name in sorted(used) if not inspect.ismodule(used[name])]


def _from_module(function: Callable[..., Any]) -> FunctionRef:
    module, name = function.__module__, function.__qualname__
    file = Path(sys.modules[module].__file__ or "")
    folder = file.parent.parent if file.name == "__init__.py" else file.parent
    for _ in range(module.count(".")):
        folder = folder.parent
    digest = source_digest(file, str(folder))
    return FunctionRef(f"{module}:{name}", str(folder), digest, awaits=is_async(function))


def _import(name: str, source_dir: str | None) -> Any:
    module, attribute = split_name(name)
    if source_dir:
        sys.path[:] = [source_dir, *(folder for folder in sys.path if folder != source_dir)]
        _forget_stale(module, source_dir)
    value: Any = importlib.import_module(module)
    for part in attribute.split("."):
        value = getattr(value, part)
    return value


_imported: dict[str, str] = {}


def _forget_stale(module: str, source_dir: str) -> None:
    """See to it that ``module`` is imported as it is now: it may have been mended, or be another one of that name."""
    file = _module_file(module, source_dir)
    if file is None:
        return
    imported_from = getattr(sys.modules.get(module), "__file__", None)
    digest = source_digest(file, source_dir)
    if imported_from is not None and (imported_from != str(file) or _imported.get(module, digest) != digest):
        for path in _sources(file, source_dir):
            sys.modules.pop(path.removesuffix(".py").removesuffix("/__init__").replace(os.sep, "."), None)
        importlib.invalidate_caches()
    _imported[module] = digest


def _sha256(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
