"""Prepares a container for a pass of shardkit: unpacks the code, installs what is missing, starts the pass.

It runs under the image's own Python with nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
OPT_ML = Path(os.environ.get("SHARDKIT_OPT_ML", "/opt/ml"))
TRY_AGAIN = 75


def fail(message: str, code: int) -> None:
    """Leave the message where the service looks for it, and end."""
    if code == TRY_AGAIN:
        message = f"transient: {message}"
    folder = OPT_ML / "output"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "message").write_text(message[:1000])
    sys.stderr.write(f"{message}\n")
    sys.exit(code)


def source_digest(folder: Path) -> str:
    """The sha256 of a package's Python files: their names and contents."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        if not name.startswith("templates/"):
            digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def has_same_shardkit(wanted: str) -> bool:
    """Whether this very shardkit is installed in the image."""
    spec = importlib.util.find_spec("shardkit")
    return spec is not None and spec.origin is not None and source_digest(Path(spec.origin).parent) == wanted


def missing(requirements: list[str]) -> list[str]:
    """Those of ``requirements`` that are not installed; all that cannot be judged."""
    if not requirements:
        return []
    try:
        from pip._vendor.packaging.requirements import Requirement
    except ImportError:
        try:
            from packaging.requirements import Requirement  # type: ignore[assignment,unused-ignore]  # the same class
        except ImportError:
            return requirements
    found = []
    for line in requirements:
        try:
            wanted = Requirement(line)
            if wanted.marker is not None and not wanted.marker.evaluate():
                continue
            there = importlib.metadata.version(wanted.name)
            if wanted.url or wanted.extras or not wanted.specifier.contains(there, prereleases=True):
                found.append(line)
        except Exception:  # noqa: BLE001  pip is the judge of what this cannot read
            found.append(line)
    return found


def install(requirements: list[str]) -> None:
    """Install with pip, from the wheels of the bundle where it has some."""
    if not requirements:
        return
    if importlib.util.find_spec("pip") is None:
        fail(f"The image has no pip, and lacks {', '.join(requirements[:5])}.", 1)
    wheels = HERE / "wheels"
    source = ["--no-index", "--find-links", str(wheels)] if wheels.is_dir() else []
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *source]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("".join(f"{line}\n" for line in requirements))
        file.flush()
        done = subprocess.run(  # noqa: S603  pip, with the requirements of the bundle
            [*command, "--requirement", file.name],
            env={**os.environ, "PIP_BREAK_SYSTEM_PACKAGES": "1"},
            stdout=sys.stderr,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        names = ", ".join(requirements[:5])
        fail(f"pip cannot install {names}: {''.join(last)}", 1 if source else TRY_AGAIN)
    importlib.invalidate_caches()


def unpack(archive: Path, target: Path) -> None:
    """Unpack an archive; what could be executed still can."""
    with zipfile.ZipFile(archive) as files:
        files.extractall(target)
        for info in files.infolist():
            (target / info.filename).chmod(0o644 | info.external_attr >> 16)


def main() -> None:
    """Unpack, install, start."""
    contents = json.loads((HERE / "contents.json").read_text())
    room = Path(tempfile.mkdtemp(prefix="shardkit-code-"))
    unpack(HERE / "source.zip", room / "source")
    needed = contents["requirements"]
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    if not has_same_shardkit(contents["shardkit"]):
        unpack(HERE / "shardkit.zip", room / "package")
        sys.path.insert(0, str(room / "package"))
        needed = contents["shardkit_requirements"] + needed
    install(missing(needed))
    os.environ["SHARDKIT_SOURCE_DIR"] = str(room / "source")
    from shardkit.job import main as run_job

    sys.exit(run_job(sys.argv[1:]))


if __name__ == "__main__":
    main()
