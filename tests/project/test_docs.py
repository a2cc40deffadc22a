"""README.md and docs/: every code block is run, every link leads somewhere; and the scripts are syntactically right.

A page's blocks share one temporary folder and run from top to bottom:

    python      is executed; all of a page in one namespace
    console     lines that begin with "$ " are run, must exit with 0 and must print what is shown; in it, "..." stands
                for anything, a run id for any run id, and a time, a rate or a size for any other
    yaml        is a pipeline; fields that it leaves out and that have no default are filled in. A file with steps is
                a workflow
    json        is JSON
    sh          is not run: commands for another machine state (installation, the scripts, which CI runs anyway)
    text        is only shown

A block whose first line is a comment with a file's name, such as "# features.py", is written to that file; Python in
it is for import, and not executed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import loaded
import pytest
import warm
import warm_command
import warm_jobs
import yaml

import shardkit as sk
import shardkit.errors
from shardkit import Local, Pipeline, SageMaker, Slurm
from shardkit.jobs import Policy
from shardkit.jobs.policy import ATTEMPTS
from shardkit.pages.write import chart_library
from shardkit.workflows.document import Workflow
from shardkit.workflows.parts import Calendar, Machines, Notify, Resources, Step, Webhook
from shardkit.workflows.read import read_workflow

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"python", "console", "yaml", "json", "sh", "text"}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# ([\w./-]+\.(?:py|yaml|txt))(?: .*)?")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
# A command of plain and quoted words; the shell would do no more with it than to say its exit code.
CODE = '; echo "exit code $?"'
NEEDS_NO_SHELL = re.compile(
    r"""(?:shardkit|python -c)(?:(?:\s|\\\n)+(?:[\w./:=,+@%-]|'[^']*'|"[^"$`\\]*")+)*""" + f"(?:{re.escape(CODE)})?"
)
# What differs from run to run, in the order in which it is replaced.
VARYING = (
    (re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}"), "<run id>"),
    (re.compile(r"<run id>-[0-9a-f]{6}-g"), "<run id>-<output>-g"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|\+00:00)"), "<time>"),
    (re.compile(r"\d[\d,.]* (?:records|rows)/s"), "<rate>"),
    (re.compile(r"\d[\d,.]* (?:[kMGT]?B)\b(?:/s)?"), "<size>"),
    (re.compile(r"\b(?:\d+ min \d+ s|[\d.]+ s)\b"), "<seconds>"),
)

ELSEWHERE = {"training.md"}  # tests/training runs it, with what it imports
# What commands of a page load, or their workers: a process has loaded it, and the commands are its forks.
TABLES = ("pandas", "duckdb")
LOADED = dict.fromkeys(("checks", "engines", "lists", "pipeline", "provenance", "sql", "tutorial"), TABLES) | {
    "batches": ("pandas", "httpx", "sklearn.feature_extraction.text", "sklearn.linear_model"),
    "iceberg": (*TABLES, "pyiceberg.catalog.sql", "pyiceberg.table"),
    **dict.fromkeys(("jobs", "looking"), ("charts",)),
}
SLOW = {"README.md", "batches.md", "engines.md", "iceberg.md", "jobs.md", "looking.md", "workflows.md"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
pages_to_run = pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] * (page.name in SLOW))
        for page in PAGES
        if page.name not in ELSEWHERE
    ],
)


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int
    place: str

    @property
    def file_name(self) -> str | None:
        match = FILE_NAME.fullmatch(self.text.split("\n", 1)[0])
        return match[1] if match else None


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    assert text.count("```") == 2 * len(BLOCK.findall(text)), f"{page.name} has a block that does not end"
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match[1], match[2], line, f"{page.name}, line {line}"))
    return found


class PageRun:
    """Runs the blocks of one page."""

    def __init__(self, folder: Path, forks: warm.Server | None = None) -> None:
        self.forks = forks or warm.server()
        self.commands = warm_command.folder(folder.with_name(f"{folder.name}-commands"))
        self.folder = folder
        self.home = folder
        self.namespace: dict[str, Any] = {"__name__": "__main__"}

    def run(self, block: Block) -> None:
        assert block.language in LANGUAGES, f"{block.place}: unknown language {block.language!r}"
        if block.file_name:
            (self.folder / block.file_name).write_text(block.text)
        if block.language == "python":
            # Line numbers in a traceback are those of the page.
            code = compile("\n" * block.line + block.text, block.place, "exec", dont_inherit=True)
            if block.file_name:
                return
            os.chdir(self.folder)
            exec(code, self.namespace)
        elif block.language == "console":
            self._console(block)
        elif block.language == "yaml":
            self._yaml(block)
        elif block.language == "json":
            json.loads(block.text)

    def _console(self, block: Block) -> None:
        path = f"{self.commands}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = os.environ | {"PATH": path, "COLUMNS": "120", "TERM": "dumb", warm_jobs.ADDRESS: self.forks.address}
        for command, shown in commands_of(block):
            code, printed = (self._itself if NEEDS_NO_SHELL.fullmatch(command) else self._in_shell)(command, env)
            said = f"{block.place}: $ {command}\n{printed}"
            assert code == 0, f"{said}exit code {code}"
            if shown.strip() and not expected(shown).fullmatch(plain(printed, self.home)):
                pytest.fail(f"{said}\n-- is shown as --\n{shown}", pytrace=False)

    def _itself(self, command: str, env: Mapping[str, str]) -> tuple[int, str]:
        """Run a command without a shell, which would do no more with it; its exit code and its output."""
        program, *words = shlex.split(command.removesuffix(CODE).replace("\\\n", " "))
        with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
            process = self.forks.fork(
                [*(["-m", "shardkit"] if program == "shardkit" else []), *words],
                cwd=str(self.folder),
                env=env,
                output=[out.fileno()] * 2,
                session=False,
            )
            code = process.wait(120)
            out.seek(0)
            printed = out.read()
        return (0, f"{printed}exit code {code}\n") if command.endswith(CODE) else (code, printed)

    def _in_shell(self, command: str, env: Mapping[str, str]) -> tuple[int, str]:
        """Run a line in a shell, which may go to another folder; its exit code and its output."""
        note = self.home / ".working-folder"
        script = f"cd {self.folder}\n{command}\nstatus=$?\npwd >{note}\nexit $status\n"
        done = subprocess.run(
            ["bash", "-c", script],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            env=env,
        )
        self.folder = Path(note.read_text().strip())
        return done.returncode, done.stdout

    def _yaml(self, block: Block) -> None:
        content = yaml.safe_load(block.text)
        if block.file_name:
            read = read_workflow if "steps" in content else Pipeline.from_yaml
            read(self.folder / block.file_name)
            return
        assert isinstance(content, dict), block.place
        whole = {"input": "data/", "function": "function:rows", "output": "out/"} | content
        for section in ("input", "output"):
            if isinstance(whole[section], dict):
                whole[section].setdefault("uri", f"{section}/")
        file = self.folder / ".block.yaml"
        file.write_text(yaml.safe_dump(whole))
        Pipeline.from_yaml(file)


def commands_of(block: Block) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output that is shown below it."""
    found: list[tuple[str, str]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif found and found[-1][0].endswith("\\"):
            found[-1] = (f"{found[-1][0]}\n{line}", "")
        else:
            assert found, f"{block.place}: a console block begins with a command"
            found[-1] = (found[-1][0], f"{found[-1][1]}{line}\n")
    return found


def plain(output: str, home: Path) -> str:
    """Output without what differs from run to run; the page's folder is shown as /home/me."""
    output = output.replace(str(home), "/home/me")
    for pattern, name in VARYING:
        output = pattern.sub(name, output)
    return "".join(f"{line.rstrip()}\n" for line in output.splitlines())


def expected(shown: str) -> re.Pattern[str]:
    text = re.escape(plain(shown, Path("/home/me"))).replace(r"\.\.\.", "(?s:.*?)")
    return re.compile(re.sub(r"(?:\\ )+", r"\\s+", text))


@pytest.mark.whole
@pages_to_run
def test_blocks_run(
    page: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, servers: Path
) -> None:
    monkeypatch.setenv(loaded.CHARTS, str(servers / "charts.json"))
    run_page(page, tmp_path_factory, monkeypatch)


def run_page(page: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path = tmp_path_factory.mktemp("page")  # a name that no command of a page looks for
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")  # wherever the page goes
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))  # jobs of the local engine
    before = set(sys.modules)
    run = PageRun(tmp_path.resolve(), forks_of(page))
    try:
        with loaded.fork_servers(run.forks):
            for block in blocks_of(page):
                run.run(block)
    finally:
        for name in set(sys.modules) - before:  # what the page has imported from its own folder
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]


def forks_of(page: Path) -> warm.Server:
    """The process of which a page's commands are forks."""
    libraries = LOADED.get(page.stem, ())
    if "charts" in libraries:
        with contextlib.suppress(ImportError):
            chart_library()  # so that it need not be put together there
    return loaded.server(*libraries) if libraries else warm.server()


@pages
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text("utf-8"))
    for link in LINK.findall(text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors_of(target), f"{page.name}: {link}"


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_can_be_reached() -> None:
    reached, queue = set(), [PAGES[0]]
    while queue:
        page = queue.pop()
        reached.add(page)
        links = [link.partition("#")[0] for link in LINK.findall(page.read_text("utf-8")) if "://" not in link]
        queue += {(page.parent / link).resolve() for link in links if link.endswith(".md")} - reached
    assert set(PAGES) <= reached


def test_commands_that_are_not_run_exist() -> None:
    for page in PAGES:
        for block in blocks_of(page):
            for line in block.text.splitlines() if block.language == "sh" else ():
                for word in re.findall(r"(?:^|\s)(scripts/[\w-]+)", line):
                    assert os.access(ROOT / word, os.X_OK), f"{block.place}: {word}"


def test_a_broken_block_fails(tmp_path: Path) -> None:
    """All tests above rely on this."""
    for language, text, error in (
        ("python", "1 / 0\n", ZeroDivisionError),
        ("console", "$ false\n", AssertionError),
        ("console", "$ echo one\ntwo\n", pytest.fail.Exception),
        ("yaml", "tmeout: 3\n", Exception),
        ("json", "{]\n", ValueError),
        ("perl", "\n", AssertionError),
    ):
        with pytest.raises(error):
            PageRun(tmp_path).run(Block(language, text, 1, "a page"))
    PageRun(tmp_path).run(Block("console", "$ echo one two 3.4 s\none ... 17 s\n", 1, "a page"))


def test_every_field_is_documented() -> None:
    text = (ROOT / "docs" / "pipeline.md").read_text("utf-8")
    fields = set(Pipeline.model_fields)
    for section in ("input", "shards", "output"):
        kind = section_of(section)
        fields |= {f"{section}.{field.alias or name}" for name, field in kind.model_fields.items()}
    missing = {field for field in fields if f"`{field}`" not in text}
    assert not missing


def test_every_field_of_an_engine_is_documented() -> None:
    text = (ROOT / "docs" / "engines.md").read_text("utf-8")
    fields = {field.alias or name for kind in (SageMaker, Local) for name, field in kind.model_fields.items()}
    assert {field for field in fields if f"`{field}`" not in text} == set()
    text = (ROOT / "docs" / "slurm.md").read_text("utf-8")
    fields = {field.alias or name for name, field in Slurm.model_fields.items()}
    assert {field for field in fields - {"kind"} if f"`{field}`" not in text} == set()


def test_every_field_of_a_workflow_is_documented() -> None:
    text = (ROOT / "docs" / "workflows.md").read_text("utf-8")
    kinds = (Workflow, Step, Calendar, Webhook, Machines, Resources, Notify)
    fields = {field.alias or name for kind in kinds for name, field in kind.model_fields.items()}
    assert {field for field in fields if f"`{field}`" not in text} == set()


def test_the_attempts_that_each_cause_gets_are_documented() -> None:
    text = (ROOT / "docs" / "engines.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| (\d+) \|$", text, re.MULTILINE)
    assert {cause: int(attempts) for cause, attempts in rows} == ATTEMPTS
    assert f"at most {Policy().max_attempts} attempts" in text


def section_of(name: str) -> Any:
    from shardkit.spec.input import Input
    from shardkit.spec.sections import Output, Shards

    return {"input": Input, "shards": Shards, "output": Output}[name]


@pytest.mark.whole
def test_the_command_line_page_is_up_to_date() -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "cli-page", "--check"], check=True)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    names = set(sk.__all__) - {"__version__", "jobs"}
    reference = (tmp_path / "site" / "api.html").read_text()
    assert {name for name in names if f'id="shardkit.{name}"' not in reference} <= set(dir(sk.errors))
    assert {name for name in names & set(dir(sk.errors)) if f'id="shardkit.errors.{name}"' not in reference} == set()


def test_the_pictures_of_the_readme_are_up_to_date() -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "pictures", "--check"], check=True)


@pytest.mark.parametrize(
    "script",
    [
        "scripts/setup",
        "scripts/demo",
        "scripts/test",
        "scripts/test-clusters",
        "scripts/test-sdk",
        "scripts/test-slurm",
        "scripts/test-training",
        "scripts/check",
        "scripts/bench",
        ".ci/run",
    ],
)
def test_scripts_are_valid(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / script], check=True)
