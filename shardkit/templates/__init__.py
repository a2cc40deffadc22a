"""The pipelines that ``shardkit init`` writes."""

from __future__ import annotations

import runpy
import shutil
from importlib import resources
from importlib.util import find_spec
from typing import TYPE_CHECKING

from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NEEDS = {"mimic": "wfdb"}


def write_template(kind: str, folder: Path, *, command: str = "run pipeline.yaml") -> Iterator[str]:
    """Copy the template ``kind`` to ``folder`` and make its input; yields lines for the user.

    ``command`` is the command of shardkit that runs it.

    Raises:
        PipelineError: ``folder`` holds one of the files already, or a package that the template needs is missing.
    """
    needed = NEEDS.get(kind)
    if needed and find_spec(needed) is None:
        raise PipelineError(
            f"The template {kind} needs {needed}.", hint=f"Install it with: pip install 'shardkit[{kind}]'"
        )
    with resources.as_file(resources.files(__package__) / kind) as template:
        files = sorted(path for path in template.iterdir() if path.is_file())
        if folder.exists() and not folder.is_dir():
            raise PipelineError(f"{folder} is a file.", hint="Choose another folder.")
        written = [*(folder / file.name for file in files), folder / "data"]
        if (taken := next((path for path in written if path.exists()), None)) is not None:
            raise PipelineError(f"{taken} exists already.", hint="Choose another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(file, folder / file.name)
    runpy.run_path(str(folder / "generate.py"))["generate"](folder / "data")
    yield f"Wrote {', '.join(file.name for file in files)} and made-up input in {folder / 'data'}."
    yield f"Run it: cd {folder} && shardkit {command}"
