"""A requirements file as a job gets it: read as pip reads it, with the files that it names.

Lines go to pip as they are. Files beside it, which a job cannot see, travel with the code: a wheel that is named by its
path, a folder of ``--find-links``. Other requirements and constraints files are read in.
"""

from __future__ import annotations

import codecs
import hashlib
import locale
import re
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path

from shardkit.errors import PipelineError
from shardkit.masking import holds_secret
from shardkit.runs.container.bootstrap import FILES, parted

BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
CODING = re.compile(rb"#.*?coding[:=][ \t]*([-\w.]+)")
COMMENT = re.compile(r"(^|\s+)#.*$")
ARCHIVES = (".whl", ".tar.gz", ".zip", ".tar.bz2")
OTHER_FILES = {
    "-r": "requirements",
    "--requirement": "requirements",
    "-c": "constraints",
    "--constraint": "constraints",
}
# Options that mean the same in a job as here.
OPTIONS = {
    *("-i", "--index-url", "--extra-index-url", "--no-index", "--trusted-host", "--pre", "--prefer-binary"),
    *("--only-binary", "--no-binary", "--require-hashes", "--use-feature"),
}
CURE = (
    "Everybody who may read the output sees it. Let the jobs' role or the image's pip.conf give the access, or give "
    "the package as a wheel beside the file."
)


@dataclass
class Requirements:
    """The lines and constraints for pip, and the files that they name, under their names in the bundle."""

    lines: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> Requirements:
        """The content of a requirements file.

        Raises:
            PipelineError: it cannot be read, or holds what a job cannot have; the message names the line.
        """
        made = cls()
        made._take(path, made.lines, seen=())
        return made

    def _take(self, path: Path, lines: list[str], *, seen: tuple[Path, ...]) -> None:
        real = path.resolve()
        if real in seen:
            raise PipelineError(f"requirements: {path} takes itself in, by way of {seen[-1].name}.")
        for number, line in _joined(_text(path)):
            where = f"requirements: {path}, line {number}"
            if holds_secret(line):
                raise PipelineError(f"{where} looks like it holds a secret: {line}.", hint=CURE)
            option, value = _option(line)
            if option in OTHER_FILES:
                other = self._beside(path, value, where)
                into = self.constraints if OTHER_FILES[option] == "constraints" else lines
                self._take(other, into, seen=(*seen, real))
            elif option in ("-f", "--find-links"):
                lines.append(f"--find-links {self._links(path, value, where)}")
            elif option in ("-e", "--editable"):
                raise PipelineError(
                    f"{where} holds an editable requirement: {line!r}. A job has no folder of yours to link to.",
                    hint="Put the package into source_dir, or build a wheel of it (pip wheel) and name that.",
                )
            elif option and option not in OPTIONS:
                raise PipelineError(
                    f"{where} holds the option {line!r}, which jobs cannot follow.",
                    hint="Leave it out, or set it in the image.",
                )
            else:
                lines.append(line if option else self._with_file(path, line, where))

    def _with_file(self, path: Path, line: str, where: str) -> str:
        """A requirement as jobs need it: if it names a file, it names that file's place in the bundle instead."""
        wanted, options = parted(line)
        wanted, *markers = re.split(r"\s*;\s+|\s+;", wanted, maxsplit=1)
        name, at, place = wanted.partition("@") if re.match(r"[\w.-]+\s*(\[.*\])?\s*@", wanted) else ("", "", "")
        local = _path_in(place.strip() if at else wanted)
        if local is None or (at and not place.strip().lower().startswith("file:")):
            return line
        file = self._beside(path, local.partition("#")[0], where)
        extras = re.search(r"\[[\w,\s.-]+\]$", local)
        kept = f"{name.strip()} @ file://{{{FILES}}}/{self._keep(file)}" if at else f"{{{FILES}}}/{self._keep(file)}"
        return f"{kept}{extras[0] if extras and not at else ''}{''.join(f' ; {each}' for each in markers)}{options}"

    def _keep(self, file: Path) -> str:
        """Take a file along; returns its name in the bundle, which contains a digest of its content."""
        name = f"{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}/{file.name}"
        self.files[name] = file
        return name

    def _beside(self, path: Path, value: str, where: str) -> Path:
        """A file that a requirements file names, relative to its own folder."""
        if re.match(r"[a-z][a-z0-9+.-]+://", value, re.IGNORECASE) and not value.startswith("file:"):
            raise PipelineError(f"{where} names {value}, which is no file.", hint="Put it beside the file.")
        text = re.sub(r"\[[\w,\s.-]+\]$", "", _path_in(value) or value)
        file = path.parent / Path(text).expanduser()
        if file.is_dir():
            raise PipelineError(
                f"{where} names the folder {text}.", hint="Build a wheel of it (pip wheel --no-deps) and name that."
            )
        if not file.is_file():
            raise PipelineError(f"{where} names {text}, and there is no such file beside it.")
        return file

    def _links(self, path: Path, value: str, where: str) -> str:
        """Where pip finds files in a job: a folder travels with its archives, a URL is the same there."""
        if re.match(r"https?://", value, re.IGNORECASE):
            return value
        folder = path.parent / Path(_path_in(value) or value).expanduser()
        if not folder.is_dir():
            raise PipelineError(f"{where} names {value}, and there is no such folder beside it.")
        archives = sorted(file for file in folder.iterdir() if file.name.endswith(ARCHIVES) and file.is_file())
        content = "".join(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in archives)
        home = f"links-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
        self.files |= {f"{home}/{file.name}": file for file in archives}
        return f"{{{FILES}}}/{home}"


def _text(path: Path) -> str:
    """The text of a file as pip decodes it: by its mark, by a coding comment, as UTF-8, or as the locale has it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PipelineError(f"requirements: {path} cannot be read: {error.strerror}.") from None
    for mark, name in BOMS:
        if data.startswith(mark):
            return _decoded(path, data[len(mark) :], name)
    coding = next(
        (match for line in data.split(b"\n")[:2] if line[:1] == b"#" and (match := CODING.search(line))), None
    )
    if coding is not None:
        return _decoded(path, data, coding[1].decode("ascii"))
    for name in ("utf-8", locale.getpreferredencoding(do_setlocale=False)):
        try:
            return data.decode(name)
        except (UnicodeDecodeError, LookupError):
            continue
    text = data.decode("latin-1")
    if all(COMMENT.sub("", line).isascii() for line in text.splitlines()):
        return text  # only a comment has such letters
    return _decoded(path, data, "utf-8")


def _decoded(path: Path, data: bytes, name: str) -> str:
    try:
        return data.decode(name)
    except (UnicodeDecodeError, LookupError):
        raise PipelineError(f"requirements: {path} is no text in {name}.", hint="Save it as UTF-8.") from None


def _joined(text: str) -> list[tuple[int, str]]:
    """The lines with their numbers, without comments and empty lines; a backslash at an end joins two lines."""
    joined: list[tuple[int, str]] = []
    begun, parts = 0, []
    for number, line in enumerate(text.splitlines(), 1):
        comment = line.lstrip().startswith("#")
        parts.append(" " + line if comment else line.removesuffix("\\"))
        begun = begun or number
        if line.endswith("\\") and not comment:
            continue
        whole = COMMENT.sub("", "".join(parts)).strip()
        if whole:
            joined.append((begun, whole))
        begun, parts = 0, []
    rest = COMMENT.sub("", "".join(parts)).strip()
    return [*joined, (begun, rest)] if rest else joined


def _option(line: str) -> tuple[str, str]:
    """The option with which a line begins, and its value; both empty if the line is a requirement."""
    if not line.startswith("-"):
        return "", ""
    if re.match(r"-[a-z](?=[^\s=-])", line):  # -rothers.txt
        return line[:2], line[2:].strip()
    option, _, value = line.replace("=", " ", 1).partition(" ") if line.startswith("--") else line.partition(" ")
    return option, value.strip().strip("'\"")


def _path_in(text: str) -> str | None:
    """The path of a requirement that is a path or a ``file:`` URL; None if it is the name of a package."""
    if text.lower().startswith("file:"):
        return urllib.parse.unquote(re.sub(r"^file:(//(localhost)?)?(?=/)|^file:(//)?", "", text, flags=re.IGNORECASE))
    bare = re.sub(r"\[[\w,\s.-]+\]$", "", text)
    is_path = bare.startswith((".", "/", "~")) or bare.endswith(ARCHIVES)
    return text if is_path and "://" not in text else None
