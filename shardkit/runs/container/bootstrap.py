"""Prepares a container for a pass of shardkit: unpacks the code, installs what is missing, starts the pass.

It runs under the image's own Python with nothing but the standard library.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OPT_ML = Path(os.environ.get("SHARDKIT_OPT_ML", "/opt/ml"))
TRY_AGAIN = 75
FILES = "files"  # the folder of the bundle with the files that requirements name; in braces in these
UNREACHABLE = re.compile(
    r"Could not fetch URL \S+: (?:connection error|timed out|There was a problem confirming|(?:429|5\d\d) )"
    r"|Retrying \(Retry\(|Max retries exceeded|NewConnectionError|NameResolutionError"
    r"|Connection (?:refused|reset|aborted)|Read timed out|ConnectTimeout|HTTP error (?:429|5\d\d)"
    r"|IncompleteRead|ProtocolError"
)
# For a local job: where environments are kept, and the folders of packages below them; see shardkit.engines.pyenv.
ENVIRONMENTS, SITES, PREPARED = "SHARDKIT_ENVIRONMENTS", "SHARDKIT_SITES", "SHARDKIT_PREPARED"
BASE = "_shardkit_base.pth"
UNUSED_S = 30 * 86400.0
# What is started, by the first argument: a pass of a run, its driver, or all of a run.
PASS, PROGRAMS = (
    "shardkit.runs.container.job",
    {"run": "shardkit.runs.container.driver", "whole": "shardkit.runs.container.whole"},
)


def fail(message: str, code: int) -> None:
    """Leave the message where the service looks for it, and end."""
    if code == TRY_AGAIN:
        message = f"transient: {message}"
    message = masked(message)
    message = masked(message)
    folder = OPT_ML / "output"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("message", "failure"):  # of Processing, and of training jobs
        (folder / name).write_text(message[:1000])
    sys.stderr.write(f"{message}\n")
    sys.exit(code)


def masked(text: str) -> str:
    """The text without secrets, by the module that is beside this one in a bundle, and above it in the package."""
    for folder in (HERE, HERE.parent):
        spec = importlib.util.spec_from_file_location("shardkit_masking", folder / "masking.py")
        if spec is not None and spec.loader is not None and (folder / "masking.py").is_file():
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return str(module.masked(text))
    return text


def source_digest(folder: Path) -> str:
    """The sha256 of a package's Python files: their names and contents."""
    digest, top = hashlib.sha256(), os.path.join(folder, "")
    paths = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names if name.endswith(".py")]
    for path in sorted(paths):
        name = path[len(top) :].replace(os.sep, "/")
        if not name.startswith("templates/"):
            with open(path, "rb", buffering=0) as file:
                digest.update(f"{name}\0".encode() + file.read() + b"\0")
    return digest.hexdigest()


def has_same_shardkit(wanted: str) -> bool:
    """Whether exactly this shardkit is installed in the image."""
    spec = importlib.util.find_spec("shardkit")
    return spec is not None and spec.origin is not None and source_digest(Path(spec.origin).parent) == wanted


def parted(line: str) -> tuple[str, str]:
    """A line of requirements in two: the requirement, and its options, such as ``--hash``."""
    required, option, rest = line.partition(" --")
    return required.strip(), f"{option}{rest}"


def missing(requirements: list[str]) -> list[str]:
    """The ``requirements`` that are not installed, and those that cannot be judged here."""
    if not requirements:
        return []
    try:
        from pip._vendor.packaging.requirements import Requirement
    except ImportError:
        try:
            from packaging.requirements import Requirement  # type: ignore[assignment,unused-ignore]  # the same class
        except ImportError:
            return requirements
    missing = []
    for line in requirements:
        if line.startswith("-"):
            continue  # an option: it asks for nothing
        try:
            wanted = Requirement(parted(line)[0])
            if wanted.marker is not None and not wanted.marker.evaluate():
                continue
            there = importlib.metadata.version(wanted.name)
            if wanted.url or wanted.extras or not wanted.specifier.contains(there, prereleases=True):
                missing.append(line)
        except Exception:  # noqa: BLE001  pip is the judge of what this cannot read
            missing.append(line)
    return missing


def install(own: list[str], needed: list[str], constraints: list[str], *, python: str = sys.executable) -> None:
    """Install what is missing of shardkit's ``own`` requirements and of the user's.

    Pip gets all of the user's, also those that are there, so that it keeps to them while it resolves the others. Hashes
    are for all requirements of a call or for none: shardkit's own, which have none, then go by themselves.
    """
    own_missing, needed_missing = missing(own), missing(needed)
    if not own_missing and not needed_missing:
        return
    if importlib.util.find_spec("pip") is None:
        fail(f"The image has no pip, and lacks {', '.join((own_missing + needed_missing)[:5])}.", 1)
    kept = [parted(line)[0] for line in own if line not in own_missing and "[" not in line]
    hashed = any(line.startswith("--require-hashes") or " --hash" in line for line in needed)
    if hashed:
        if own_missing:
            run_pip(python, own_missing, [parted(line)[0] for line in needed if is_pin(line)])
        if needed_missing:
            run_pip(python, needed, constraints)
    else:
        run_pip(python, (needed if needed_missing else []) + own_missing, constraints + kept)
    importlib.invalidate_caches()


def is_pin(line: str) -> bool:
    """Whether a line says no more than the version of a package, so that it can be a constraint."""
    return not line.startswith("-") and "@" not in line and "/" not in line and "[" not in line


def run_pip(python: str, lines: list[str], constraints: list[str]) -> None:
    """Install with pip, from the wheels of the bundle where it has some."""
    wheels = HERE / "wheels"
    source = ["--no-index", "--find-links", str(wheels)] if wheels.is_dir() else []
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet", *source]
    with tempfile.TemporaryDirectory(prefix="shardkit-pip-") as folder:
        files = {"--requirement": lines, "--constraint": constraints}
        for option, content in files.items():
            path = Path(folder, f"{option.strip('-')}s.txt")
            text = "".join(f"{line}\n" for line in content)
            path.write_text(text.replace(f"{{{FILES}}}", str(HERE / FILES)), "utf-8")
            command += [option, str(path)]
        log = Path(folder, "pip.log")
        done = subprocess.run(  # noqa: S603  pip, with the requirements of the bundle
            [*command, "--log", str(log)],
            env={**os.environ, "PIP_BREAK_SYSTEM_PACKAGES": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        output = log.read_text("utf-8", errors="replace") if log.exists() else ""
    sys.stderr.write(masked(done.stdout))
    if done.returncode:
        names = ", ".join(line for line in lines if not line.startswith("-"))[:300]
        again = done.returncode < 0 or is_unreachable(output + done.stdout)
        fail(f"pip cannot install {names}: {why(done.stdout, output)}", TRY_AGAIN if again and not source else 1)


def is_unreachable(log: str) -> bool:
    """Whether pip's log says that an index or a server did not answer, so that another try may succeed."""
    return UNREACHABLE.search(log) is not None


def why(said: str, log: str) -> str:
    """What went wrong, in pip's words: its errors, and which requirements contradict each other."""
    errors = [line.removeprefix("ERROR: ").strip() for line in said.splitlines() if line.startswith("ERROR:")]
    conflict = log.partition("The conflict is caused by:")[2]
    if conflict:
        lines = [re.sub(r"^\d\S+", "", line).strip() for line in conflict.splitlines()[1:]]
        errors = [error for error in errors if not error.startswith("ResolutionImpossible")]
        errors.append("; ".join(itertools.takewhile(bool, lines)))
    last = [line.strip() for line in said.splitlines() if line.strip()][-1:]
    return " ".join(dict.fromkeys(errors[-3:] or last)) or "it does not say why"


def check_python(contents: dict[str, Any]) -> None:
    """End with a message if the function cannot be loaded here, before anything is installed for it."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if contents.get("by_value") and contents["python"] != here:
        fail(
            f"The function travels by value from Python {contents['python']}, and this image has Python {here}. Use an "
            f"image with Python {contents['python']}, or put the function in a module and set source_dir.",
            1,
        )


def unpack(archive: Path, target: Path) -> None:
    """Unpack an archive; programs stay executable."""
    with zipfile.ZipFile(archive) as files:
        files.extractall(target)
        for info in files.infolist():
            (target / info.filename).chmod(0o644 | info.external_attr >> 16)


def prepare(own: list[str], needed: list[str], constraints: list[str]) -> None:
    """Install everything: here if the container is the job's own, else in an environment that is kept."""
    home = os.environ.get(ENVIRONMENTS)
    if os.environ.get(PREPARED) == str(HERE) or not (missing(own) or missing(needed)):
        return
    if home is None:
        install(own, needed, constraints)
        return
    kept = kept_environment(Path(home), own, needed, constraints)
    packages = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    base = Path(sys.prefix, packages, BASE)
    before = base.read_text("utf-8") if base.exists() else ""
    base.write_text(f"import site; site.addsitedir({str(kept / packages)!r})\n{before}", "utf-8")
    os.environ |= {PREPARED: str(HERE), "PATH": f"{Path(sys.prefix, 'bin')}:{kept / 'bin'}:{os.environ['PATH']}"}
    os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606  this very program, which now finds them


def kept_environment(home: Path, own: list[str], needed: list[str], constraints: list[str]) -> Path:
    """The environment with these requirements; the first job that needs it makes it while the others wait."""
    sites = os.environ.get(SITES, "").split(os.pathsep)
    there = [name for site in sites if Path(site).is_dir() for name in os.listdir(site) if name.endswith("-info")]
    wheels = sorted(path.name for path in (HERE / "wheels").iterdir()) if (HERE / "wheels").is_dir() else []
    options = sorted(item for item in os.environ.items() if item[0].startswith("PIP_"))
    python = [os.path.realpath(sys.executable), sys.version, os.uname().machine]
    about = [own, needed, constraints, sites, sorted(there), wheels, options, python]
    folder = home / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
    complete = folder / "complete"
    home.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            remove_unused(home)
            shutil.rmtree(folder, ignore_errors=True)
            venv.EnvBuilder(symlinks=True).create(folder)
            packages = next(folder.glob("lib/python*/site-packages"))
            lines = (f"import site; site.addsitedir({site!r})\n" for site in sites if site)
            (packages / BASE).write_text("".join(lines), "utf-8")
            install(own, needed, constraints, python=str(folder / "bin" / "python"))
        complete.touch()
    return folder


def remove_unused(home: Path) -> None:
    """Remove environments that no job has started with for longer than any job runs."""
    for complete in home.glob("*/complete"):
        if time.time() - complete.stat().st_mtime > UNUSED_S:
            shutil.rmtree(complete.parent, ignore_errors=True)
            Path(f"{complete.parent}.lock").unlink(missing_ok=True)


def main() -> None:
    """Install, unpack, start."""
    contents = json.loads((HERE / "contents.json").read_text())
    check_python(contents)
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    same = has_same_shardkit(contents["shardkit"])
    own = [] if same else contents["shardkit_requirements"]
    prepare(own, contents["requirements"], contents.get("constraints", []))
    room = Path(tempfile.mkdtemp(prefix="shardkit-code-"))
    unpack(HERE / "source.zip", room / "source")
    if not same:
        unpack(HERE / "shardkit.zip", room / "package")
        sys.path.insert(0, str(room / "package"))
    os.environ["SHARDKIT_SOURCE_DIR"] = str(room / "source")
    program = importlib.import_module(PROGRAMS.get(sys.argv[1], PASS))
    sys.exit(program.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
