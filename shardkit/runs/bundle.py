"""The code that a job needs, as one folder whose name is the sha256 of its content.

    <output>/_shardkit/code/<sha256>/
        bootstrap.sh, bootstrap.py     start a pass in any image that has sh and a Python of 3.10 or newer
        contents.json                  describes the others
        shardkit.zip, source.zip       this package, and the user's source_dir
        wheels/*.whl                   all requirements, with ``requirements_mode: bundle``

It is uploaded once for each content, not for each job.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from shardkit.dataset.formats.kinds import format_of
from shardkit.errors import PipelineError
from shardkit.functions import is_library, python_version
from shardkit.runs.container.bootstrap import FILES, is_unreachable, source_digest, why
from shardkit.runs.requirements import Requirements
from shardkit.storage.base import STATE_DIR
from shardkit.storage.local_folder import LocalFolder
from shardkit.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.functions import FunctionRef
    from shardkit.spec.spec import Spec
    from shardkit.storage.base import Folder

PACKAGE = Path(__file__).resolve().parent.parent
LARGEST_SOURCE_BYTES = 100 << 20
MOST_SOURCE_FILES = 50_000
COMPARED_BYTES = 8 << 20  # files that are uploaded already are compared up to this size
NO_SOURCE = {"__pycache__", "node_modules", STATE_DIR}


def upload_bundle(
    output: Folder,
    source_dir: str | None,
    *,
    requirements: str | None,
    mode: str,
    leave_out: tuple[str, ...] = (),
    extras: tuple[str, ...] = (),
    by_value: bool = False,
    dry_run: bool = False,
) -> str:
    """Upload the code, unless it is there already; returns the URI of its folder, with a slash at the end.

    Args:
        output: the folder of the dataset.
        source_dir: the user's code; None if the function travels by value.
        requirements: a requirements file; by default ``requirements.txt`` in ``source_dir``, if there is one.
        mode: ``install`` (in each job, from the network), ``bundle`` (wheels travel with the code) or ``none``.
        leave_out: folders that are not code although they are in ``source_dir``: the input and the output.
        extras: the extras of this package that the jobs need.
        by_value: whether the function travels by value, and so needs this very Python.
        dry_run: upload nothing, and only find out where it would be.

    Raises:
        PipelineError: the code is too large, or a requirement cannot be fetched.
        StorageError: it cannot be uploaded.
    """
    needs = Requirements() if mode == "none" else _requirements(source_dir, requirements)
    own = [] if mode == "none" else _own_requirements(extras)
    contents = {
        "python": python_version(),
        "shardkit": _package().digest,
        "shardkit_requirements": own,
        "requirements": needs.lines,
        "constraints": needs.constraints,
        "by_value": by_value,
    }
    files = {
        "bootstrap.sh": (PACKAGE / "runs" / "container" / "bootstrap.sh").read_bytes(),
        "bootstrap.py": (PACKAGE / "runs" / "container" / "bootstrap.py").read_bytes(),
        "masking.py": (PACKAGE / "masking.py").read_bytes(),
        "contents.json": json.dumps(contents, indent=1).encode(),
        "shardkit.zip": _package().archive,
        "source.zip": _zip(source_files(source_dir, leave_out) if source_dir else iter(())),
    }
    files |= {f"{FILES}/{name}": path.read_bytes() for name, path in needs.files.items()}
    digest = hashlib.sha256(b"".join(name.encode() + hashlib.sha256(files[name]).digest() for name in sorted(files)))
    digest.update(mode.encode())
    home = output.child(f"{STATE_DIR}/code/{digest.hexdigest()}")
    if not dry_run and not _is_whole(home, files):
        if mode == "bundle":
            _upload_wheels(home, own, needs)
        for name, data in files.items():
            home.write(name, data)
        home.write("complete", json.dumps({e.key: e.bytes for e in home.entries("wheels")}).encode())
    return f"{home.uri}/"


@dataclass(frozen=True)
class Sent:
    """The code of a driver that is a job itself: it has been uploaded to ``uri``, and is unpacked in ``source_dir``.

    ``origin`` is where it lay on the machine that has sent it.
    """

    uri: str
    source_dir: str
    origin: str | None


def upload_code(
    output: Folder, pipeline: Spec, function: FunctionRef, *, mode: str | None = None, dry_run: bool = False
) -> str:
    """Upload the code of a pipeline, which lies where its functions do; the arguments are as for `upload_bundle`."""
    refs = [function, pipeline.merge().combine]
    homes = (ref.source_dir for ref in refs if ref is not None and ref.pickled is None)
    source = pipeline.source_dir or next((home for home in homes if home and not is_library(home)), None)
    data = [f.root for f in (*pipeline.input_folders(), pipeline.output_folder()) if isinstance(f, LocalFolder)]
    data += pipeline.engine.own_folders() if pipeline.engine is not None else []
    return upload_bundle(
        output,
        source,
        requirements=pipeline.requirements,
        mode=mode or pipeline.requirements_mode,
        leave_out=tuple(map(str, data)),
        extras=(
            *(pipeline.catalog.extras if pipeline.catalog is not None else ()),
            *(("sql",) if pipeline.checks is not None else ()),
            *filter(None, [format_of(pipeline.output.format).extra]),
        ),
        by_value=function.pickled is not None,
        dry_run=dry_run,
    )


def _is_whole(home: Folder, files: dict[str, bytes]) -> bool:
    """Whether the code is there, as its name says; of large files only the size is compared."""
    there = {entry.key: entry.bytes for entry in home.entries()}
    if "complete" not in there or any(there.get(name) != len(data) for name, data in files.items()):
        return False
    compared = [name for name, data in files.items() if len(data) <= COMPARED_BYTES]
    if any(data != files[name] for name, data in zip(compared, home.read_many(compared), strict=True)):
        return False
    try:
        wheels: dict[str, int] = json.loads(home.read("complete") or b"{}")
        return all(there.get(name) == size for name, size in wheels.items())
    except (ValueError, AttributeError):
        return False


def _zip(files: Iterator[tuple[str, Path]]) -> bytes:
    """An archive that depends on names and contents only."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, path in sorted(files):
            info = zipfile.ZipInfo(name)
            try:
                info.external_attr = (path.stat().st_mode & 0o755) << 16
                data = path.read_bytes()
            except OSError as error:
                raise PipelineError(f"source_dir: {path} cannot be read: {error.strerror}.") from error
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return sink.getvalue()


class Package(NamedTuple):
    """This package: the digest of its source, and the archive with it."""

    digest: str
    archive: bytes


@functools.cache
def _package() -> Package:
    """Read once, for it takes a tenth of a second, and a process sends many runs the code that it has loaded."""
    return Package(source_digest(PACKAGE), _zip(_package_files()))


def _package_files() -> Iterator[tuple[str, Path]]:
    for path in PACKAGE.rglob("*"):
        name = path.relative_to(PACKAGE)
        if path.is_file() and "__pycache__" not in name.parts and name.parts[0] != "templates":
            yield f"shardkit/{name.as_posix()}", path


def source_files(source_dir: str, leave_out: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """The user's code: everything in its folder except notebooks, hidden and generated files, and data."""
    root = Path(source_dir)
    others = {os.path.realpath(folder) for folder in leave_out}
    total, sizes = 0, []
    for top, folders, names in os.walk(root, followlinks=True):
        above = _above(root, top) | others
        folders[:] = sorted(
            name
            for name in folders
            if name not in NO_SOURCE
            and not name.startswith(".")
            and not os.path.exists(os.path.join(top, name, "pyvenv.cfg"))
            and os.path.realpath(os.path.join(top, name)) not in above
        )
        for name in names:
            path = Path(top, name)
            if name.startswith(".") or name.endswith(".ipynb") or not path.is_file():
                continue
            total += path.stat().st_size
            sizes.append((path.stat().st_size, path))
            if total > LARGEST_SOURCE_BYTES or len(sizes) > MOST_SOURCE_FILES:
                size, largest = max(sizes)
                most = (
                    human_bytes(LARGEST_SOURCE_BYTES)
                    if total > LARGEST_SOURCE_BYTES
                    else f"{MOST_SOURCE_FILES:,} files"
                )
                raise PipelineError(
                    f"source_dir: {root} holds more than {most}, with what its links lead to; the largest file is "
                    f"{largest} of {human_bytes(size)}.",
                    hint="Keep the code in a folder of its own and name that as source_dir.",
                )
            yield path.relative_to(root).as_posix(), path


def _above(root: Path, top: str) -> set[str]:
    """A folder and those above it, up to the root, as they really lie: a link that leads to one of them is a loop."""
    here = Path(top)
    return {os.path.realpath(folder) for folder in (here, *here.parents) if folder == root or root in folder.parents}


def _requirements(source_dir: str | None, requirements: str | None) -> Requirements:
    path = Path(requirements) if requirements else Path(source_dir, "requirements.txt") if source_dir else None
    if path is None or not path.is_file():
        if requirements:
            raise PipelineError(f"requirements: there is no file {requirements}.")
        return Requirements()
    return Requirements.of(path)


def _own_requirements(extras: tuple[str, ...]) -> list[str]:
    """The requirements of this package and of some of its extras, from its metadata."""
    try:
        declared = importlib.metadata.requires("shardkit") or []
    except importlib.metadata.PackageNotFoundError:
        declared = []
    wanted = {None, *extras}
    with_extra = ((line, re.search(r"extra == ['\"](\w+)", line)) for line in declared)
    return [
        line.partition(";")[0].strip() if extra else line
        for line, extra in with_extra
        if (extra and extra[1]) in wanted
    ]


def _upload_wheels(home: Folder, own: list[str], needs: Requirements) -> None:
    """Fetch all requirements as wheels for this Python and Linux, and put them beside the code."""
    with tempfile.TemporaryDirectory(prefix="shardkit-wheels-") as folder:
        wheels = Path(folder, "wheels")
        for name, path in needs.files.items():
            place = Path(folder, FILES, name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())
        Path(folder, "constraints.txt").write_text(_filled(needs.constraints, folder), "utf-8")
        # Hashes are for all requirements of a call or for none.
        for lines in (own, needs.lines) if any("--hash" in line for line in needs.lines) else (own + needs.lines,):
            if lines:
                Path(folder, "requirements.txt").write_text(_filled(lines, folder), "utf-8")
                _fetch_wheels(folder, wheels)
        for path in sorted(wheels.iterdir()) if wheels.is_dir() else ():
            home.put_file(path, f"wheels/{path.name}")


def _filled(lines: list[str], folder: str) -> str:
    return "".join(f"{line}\n" for line in lines).replace(f"{{{FILES}}}", os.path.join(folder, FILES))


def _fetch_wheels(folder: str, wheels: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    options = ["--requirement", "requirements.txt", "--constraint", "constraints.txt", "--log", "pip.log"]
    done = subprocess.run(  # noqa: S603  pip, with the user's own requirements
        [*command, "--only-binary=:all:", "--dest", str(wheels), *options],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        log = Path(folder, "pip.log")
        output = log.read_text("utf-8", errors="replace") if log.exists() else ""
        hint = "Correct the requirements, or choose requirements_mode: install."
        if is_unreachable(output + done.stderr):
            hint = "The index, or a server, does not answer: try again later."
        raise PipelineError(f"requirements: pip cannot fetch wheels: {why(done.stderr, output)}", hint=hint)
