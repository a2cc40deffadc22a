"""Notebooks that tests make and run.

The packages for that take more than a second to import. So they are imported by the tests that run one, and not by each
process that collects tests.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import loaded
import pytest
from schemas import without_grammar

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

needs_notebooks = pytest.mark.skipif(
    find_spec("nbclient") is None or find_spec("nbformat") is None, reason="nbclient and nbformat are not installed"
)


def cell(source: str, name: str) -> Any:
    """A cell with code."""
    return nbformat().v4.new_code_cell(source, id=name)


def notebook(cells: Iterable[Any]) -> Any:
    """A new notebook."""
    return nbformat().v4.new_notebook(cells=list(cells))


def read(path: Path) -> Any:
    """A notebook that is kept in a file."""
    return nbformat().read(path, as_version=4)


def nbformat() -> Any:
    """The library."""
    without_grammar()
    import nbformat

    return nbformat


def run(book: Any, folder: Path, *, allow_errors: bool = False, new: bool = False) -> Any:
    """Run a notebook from top to bottom in a folder; a cell that fails is an error unless ``allow_errors``.

    Its kernel is a fork of the process that has loaded what kernels load, or with ``new`` a new interpreter.
    """
    nbformat()
    import nbclient
    from jupyter_client.provisioning import local_provisioner

    resources = {"metadata": {"path": str(folder)}}
    with pytest.MonkeyPatch.context() as patched:
        if not new:
            patched.setattr(local_provisioner, "launch_kernel", loaded.start_kernel)
        nbclient.NotebookClient(book, timeout=120, allow_errors=allow_errors, resources=resources).execute()
    return book
