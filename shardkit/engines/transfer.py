"""Brings a job's input to its instances and takes their output away, between local folders or S3 and the volumes.

A prefix matches as a string, as it does in S3: without its trailing slash, ``data/3`` includes ``data/30/``. A file's
name under LocalPath is its key after the prefix if the prefix is a folder, else after the prefix's last slash.

Local folders need only the standard library; S3 goes through ``shardkit.storage``, which a job's porter loads.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


OPT_ML = "/opt/ml"
AT_ONCE = 16  # transfers from or to S3
TEMPORARY_PREFIX = ".shardkit-tmp-"


class InputMissing(Exception):
    """The input of a job cannot be brought; the message is what the job's FailureReason says."""


# Kinds of storage errors that may pass by themselves: the queue tries such a job again.
PASSING = {"throttled", "server_error", "timed_out", "lost", "cut_short"}


def _not_brought(what: str, error: Exception) -> Exception:
    """The error for missing input: the client's fault, unless the failure may pass by itself."""
    message = f"{what}: {error}"
    return OSError(message) if getattr(error, "kind", "") in PASSING else InputMissing(message)


class Source(NamedTuple):
    """One file of the input: where it lies, and its name under the input's LocalPath."""

    where: str  # a local path, or the URI of an object in S3
    name: str


def is_remote(uri: str) -> bool:
    """Whether a URI names S3 and not a local path."""
    return uri.startswith(("s3://", "https://"))


def local_path(uri: str) -> str:
    """The path that a local URI names; a trailing slash stays."""
    if not uri.startswith("file://"):
        return uri
    from urllib.parse import unquote

    return unquote(uri[len("file://") :])


def inside(volume: str, path: str) -> str:
    """The path outside an instance of its ``/opt/ml/...``."""
    return os.path.join(volume, "ml", os.path.relpath(path, OPT_ML))


# ---- input -------------------------------------------------------------------------------------------------------


def bring(request: dict[str, Any], volumes: dict[str, str]) -> None:
    """Copy every input of a job to the instances that need it.

    Raises:
        InputMissing: an object is not there, or two of them would have one path.
    """
    hosts = list(volumes)
    for job_input in request.get("ProcessingInputs") or []:
        if job_input.get("AppManaged") or "S3Input" not in job_input:
            continue
        wanted = job_input["S3Input"]
        files = sources(wanted)
        for i, host in enumerate(hosts):
            target = inside(volumes[host], wanted["LocalPath"])
            os.makedirs(target, exist_ok=True)
            split = wanted.get("S3DataDistributionType") == "ShardedByS3Key"
            fetch(files[i :: len(hosts)] if split else files, target)


def sources(wanted: dict[str, Any]) -> list[Source]:
    """The files that an S3Input names, sorted by key.

    Raises:
        InputMissing: there are none, or the manifest cannot be read.
    """
    uri = wanted["S3Uri"]
    files = _manifest(uri) if wanted["S3DataType"] == "ManifestFile" else _matching(uri)
    if not files:
        raise InputMissing(f"No objects found under {uri}. Check the URI, and that this job may list it.")
    return sorted(files)


def _matching(uri: str) -> list[Source]:
    """Every object whose key begins with the prefix."""
    if is_remote(uri):
        folder, _, start = _s3(uri).rpartition("/")
        try:
            entries = _storage(folder).entries()
        except Exception as error:
            raise _not_brought(f"{uri} cannot be listed", error) from error
        keys: Iterable[str] = (entry.key for entry in entries if entry.key.startswith(start))
        root = f"{folder}/"
    else:
        path = local_path(uri)
        root, start = os.path.dirname(path) + "/", os.path.basename(path)
        keys = _local_keys(root, start)
    return [Source(root + key, _named(key, start)) for key in keys if key and not key.endswith("/")]


def _named(key: str, start: str) -> str:
    """The name of a key under LocalPath: its part after the folder that the prefix names."""
    return key[len(start) + 1 :] if start and key.startswith(f"{start}/") else key


def _local_keys(root: str, start: str) -> list[str]:
    """The files under ``root`` whose relative path begins with ``start``; links are followed."""
    keys: list[str] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith(start) and not entry.name.startswith(TEMPORARY_PREFIX):
                if entry.is_dir():
                    for folder, _, names in os.walk(entry.path, followlinks=True):
                        relative = os.path.relpath(folder, root)
                        keys += [f"{relative}/{name}" for name in names]
                else:
                    keys.append(entry.name)
    return [key for key in keys if not os.path.basename(key).startswith(TEMPORARY_PREFIX)]


def _manifest(uri: str) -> list[Source]:
    """The objects that a manifest names: [{"prefix": "s3://bucket/folder/"}, "key", ...]."""
    try:
        if is_remote(uri):
            folder, name = _parent(uri)
            data: bytes = folder.read(name)
        else:
            with open(local_path(uri), "rb") as file:
                data = file.read()
        listed = json.loads(data)
        prefix, names = listed[0]["prefix"], listed[1:]
    except InputMissing:
        raise
    except (ValueError, LookupError, TypeError) as error:
        raise InputMissing(
            f'The manifest {uri} cannot be read ({error}): it is to be [{{"prefix": "s3://..."}}, "key", ...].'
        ) from error
    except Exception as error:
        raise _not_brought(f"The manifest {uri} cannot be read", error) from error
    strange = [name for name in names if not isinstance(name, str)]
    if strange:
        raise InputMissing(f"The manifest {uri} names {strange[0]!r}, which is no key.")
    root = _s3(prefix) if is_remote(prefix) else local_path(prefix)
    return [Source(root + name, name) for name in names]


def fetch(files: list[Source], target: str) -> None:
    """Copy files to their names under ``target``."""
    remote = [source for source in files if is_remote(source.where)]
    for source in files:
        if not is_remote(source.where):
            _fetch_one(source, target)
    if remote:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in pool.map(lambda source: _fetch_one(source, target), remote):
                pass


def _fetch_one(source: Source, target: str) -> None:
    place = os.path.normpath(os.path.join(target, source.name))
    if not place.startswith(os.path.join(target, "")):
        raise InputMissing(f"{source.where} would lie outside of its LocalPath.")
    try:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if is_remote(source.where):
            from pathlib import Path

            folder, key = _parent(source.where)
            folder.get_file(key, Path(place))
        else:
            copy(source.where, place)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InputMissing(
            f"{source.where} clashes with another object: one has the name of a folder of the other."
        ) from error
    except Exception as error:
        raise _not_brought(f"{source.where} cannot be brought to the job", error) from error


def copy(source: str, target: str) -> None:
    """Copy a file's content: a program may write to its input, so it gets a copy of its own.

    Where the file system shares blocks between copies, this takes neither time nor space.
    """
    with open(source, "rb") as reader, open(target, "wb") as writer:
        try:
            while os.copy_file_range(reader.fileno(), writer.fileno(), 1 << 30):
                pass
        except (OSError, AttributeError):  # other file systems, other systems
            writer.seek(0)
            writer.truncate()
            reader.seek(0)
            shutil.copyfileobj(reader, writer, 1 << 20)


# ---- output ------------------------------------------------------------------------------------------------------


class Sender(Protocol):
    """Uploads files."""

    def send(self, files: list[tuple[str, str, str]], *, settled: bool) -> None:
        """Upload files, each with its path, key and URI; ``settled`` ones do not change any more."""


class Outputs:
    """The outputs of a job, and a record of the files uploaded so far."""

    def __init__(self, request: dict[str, Any], volumes: dict[str, str], porter: Sender) -> None:
        outputs = (request.get("ProcessingOutputConfig") or {}).get("Outputs") or []
        self._outputs = [o["S3Output"] for o in outputs if "S3Output" in o and not o.get("AppManaged")]
        self._volumes = volumes
        self._porter = porter
        self._sent: dict[str, tuple[int, int]] = {}
        self._seen: dict[str, tuple[int, int]] = {}

    def make_folders(self) -> None:
        """Make every LocalPath, so that it is there when the program starts."""
        for output in self._outputs:
            for volume in self._volumes.values():
                os.makedirs(inside(volume, output["LocalPath"]), exist_ok=True)

    @property
    def continuous(self) -> bool:
        """Whether some output must be uploaded while the job runs."""
        return any(output["S3UploadMode"] == "Continuous" for output in self._outputs)

    def upload_settled(self) -> None:
        """Upload the files of continuous outputs that are new or changed, and at rest since the last call."""
        before, self._seen = self._seen, {}
        fresh = {}
        for path, key, uri in self._files("Continuous"):
            with contextlib.suppress(FileNotFoundError):
                self._seen[path] = stamp = _stamp(path)
                if stamp == before.get(path) != self._sent.get(path):
                    fresh[path] = (path, key, uri)
        self._porter.send(list(fresh.values()), settled=False)
        self._sent |= {path: self._seen[path] for path in fresh}

    def upload_rest(self, *, completed: bool) -> None:
        """Upload what is left: EndOfJob outputs of a job that completed, continuous ones of any job."""
        modes = ("EndOfJob", "Continuous") if completed else ("Continuous",)
        files = [file for mode in modes for file in self._files(mode)]
        self._porter.send([file for file in files if _stamp(file[0]) != self._sent.get(file[0])], settled=True)

    def _files(self, mode: str) -> Iterable[tuple[str, str, str]]:
        """Path, key and URI of every file in the outputs of one upload mode."""
        for output in self._outputs:
            if output["S3UploadMode"] != mode:
                continue
            for volume in self._volumes.values():
                root = inside(volume, output["LocalPath"])
                for folder, folders, names in os.walk(root):
                    folders.sort()
                    for name in sorted(names):
                        path = os.path.join(folder, name)
                        if os.path.isfile(path):
                            yield path, os.path.relpath(path, root), output["S3Uri"]


def _stamp(path: str) -> tuple[int, int]:
    about = os.stat(path)
    return about.st_size, about.st_mtime_ns


def send(files: Sequence[tuple[str, str, str]], settled: bool) -> None:  # noqa: FBT001  # it comes through a pipe
    """Upload files, each as its path, key and the URI of the output's folder.

    ``settled``: nobody will write to them any more.

    Raises:
        OSError: one of them could not be written.
    """
    remote = [file for file in files if is_remote(file[2])]
    for file in files:
        if not is_remote(file[2]):
            _send_one(*file, settled=settled)
    if remote:
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path

        folders = {uri: _storage(_s3(uri)) for _, _, uri in remote}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in pool.map(lambda file: folders[file[2]].put_file(Path(file[0]), file[1]), remote):
                pass


def _send_one(path: str, key: str, uri: str, *, settled: bool) -> None:
    """Bring one file to its name under a local folder, so that it appears whole.

    On the same disk, a settled file gets a second name instead of a copy: the first name goes with the volume.
    """
    target = os.path.join(local_path(uri), key)
    folder, name = os.path.split(target)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f"{TEMPORARY_PREFIX}{os.getpid()}-{time.monotonic_ns()}-{name[:64]}")
    try:
        if not (settled and _second_name(path, temporary)):
            copy(path, temporary)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise


def _second_name(path: str, other: str) -> bool:
    """Give a second name to a file that has only one; return whether that worked."""
    if os.path.islink(path) or os.stat(path).st_nlink != 1:
        return False
    try:
        os.link(path, other)
    except OSError:
        return False
    return True


# ---- S3 ----------------------------------------------------------------------------------------------------------


def _storage(uri: str) -> Any:
    """The S3 folder at a URI, through shardkit's own storage."""
    from shardkit.storage.open import folder

    return folder(uri)


def _parent(uri: str) -> tuple[Any, str]:
    """The S3 folder in which an object lies, and the object's name in it."""
    folder, _, name = _s3(uri).rpartition("/")
    return _storage(folder), name


def _s3(uri: str) -> str:
    """``s3://bucket/key``, also for the https form of an S3 URI, ``https://host/bucket/key``."""
    return "s3://" + uri.split("/", 3)[3] if uri.startswith("https://") else uri
