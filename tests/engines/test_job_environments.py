"""What a job installs: from any requirements file that pip reads, and never into the user's own environment."""

from __future__ import annotations

import codecs
import re
import shutil
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest
from engine_jobs import ended, request
from job_runs import JobProject

import shardkit as sk
from shardkit.engines import pyenv
from shardkit.engines.local import LocalEngine, available_isolation
from shardkit.runs.bundle import PACKAGE, source_files
from shardkit.runs.container import bootstrap
from shardkit.runs.requirements import Requirements

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

isolated = pytest.mark.skipif(available_isolation() == "none", reason="no namespaces on this machine")
VERSIONS = "import {0}\ndef features(record):\n    return {{'key': record.key, 'version': {0}.VERSION}}\n"


def make_wheel(folder: Path, name: str, version: str, *, needs: str = "") -> Path:
    """A wheel of a package that no index has."""
    folder.mkdir(exist_ok=True)
    about = f"{name}-{version}.dist-info"
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        archive.writestr(f"{about}/METADATA", metadata + (f"Requires-Dist: {needs}\n" if needs else ""))
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", f"{name}.py,,\n")
    return wheel


@pytest.fixture
def project(tmp_path: Path) -> Iterator[JobProject]:
    made = JobProject(tmp_path / "the user's")
    yield made
    made.end()


@pytest.fixture
def user_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The packages of the user's environment: zzbase 2.0, beside those that there are."""
    site = tmp_path / "user-site"
    with zipfile.ZipFile(make_wheel(tmp_path / "old", "zzbase", "2.0")) as archive:
        archive.extractall(site)
    described = pyenv.described()
    monkeypatch.setattr(pyenv, "described", lambda: described | {"sites": [*described["sites"], str(site)]})
    for version in ("1.0", "2.0", "3.0"):
        make_wheel(tmp_path / "wheels", "zzbase", version)
    make_wheel(tmp_path / "wheels", "zzneeds", "1.0", needs="zzbase>=3")
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return site


def content(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix != ".pyc")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


# ---- environments --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_installs_into_an_environment_that_the_next_job_finds(project: JobProject, user_site: Path) -> None:
    project.write_groups("go", groups="ab")
    project.write_function(VERSIONS.format("zzbase"))
    (project.code / "requirements.txt").write_text("zzbase==1.0\n")
    before = content(user_site)
    run = project.run_jobs(requirements_mode="install", workers=1)
    assert set(run.dataset().to_table()["version"].to_pylist()) == {"1.0"}
    assert content(user_site) == before
    (kept,) = (project.engine_root / "environments").glob("*/complete")  # of three jobs, two at the same time
    made = kept.parent.stat().st_ctime
    project.out = project.root / "again"
    shutil.rmtree(project.data / "b")
    again = project.run_jobs(requirements_mode="install", workers=1)
    assert set(again.dataset().to_table()["version"].to_pylist()) == {"1.0"}
    assert kept.parent.stat().st_ctime == made


@pytest.mark.whole
def test_a_pin_that_is_satisfied_holds_for_what_is_installed(project: JobProject, user_site: Path) -> None:
    project.write_groups("go", groups="a")
    (project.code / "requirements.txt").write_text("zzbase<3\nzzneeds\n")
    with pytest.raises(sk.RunFailed, match=r"after 1 attempt: pip cannot install .* zzneeds 1\.0 depends on zzbase>=3"):
        project.run_jobs(requirements_mode="install")
    assert len(list((project.engine_root / "jobs").iterdir())) == 1
    assert user_site.is_dir()


@pytest.mark.whole
@isolated
def test_a_program_of_any_kind_installs_into_its_own_job(tmp_path: Path, user_site: Path) -> None:
    engine = LocalEngine(tmp_path / "engine")
    said = "import zzbase, pip, sys; open('/opt/ml/output/message', 'w').write(zzbase.VERSION + ' ' + pip.__file__)"
    shell = f'pip install -q zzbase==1.0 && python3 -m pip install -q zzneeds; python -c "{said}"'
    before = content(user_site)
    engine.create_processing_job(**request("installs", shell=shell, Environment={"PIP_NO_WARN_CONFLICTS": "1"}))
    about = ended(engine, "installs")
    version, _, pip = about["ExitMessage"].partition(" ")
    assert version == "3.0", about
    assert not pip.startswith(str(tmp_path))  # the packages of the engine's environment are there
    assert content(user_site) == before


@pytest.mark.whole
@pytest.mark.parametrize(
    ("variables", "code", "said"),
    [
        ({"PIP_NO_INDEX": "1"}, 1, "pip cannot install zz-no-such: .*No matching distribution found for zz-no-such"),
        ({"PIP_INDEX_URL": "http://127.0.0.1:9", "PIP_RETRIES": "0"}, 75, "transient: pip cannot install zz-no-such"),
    ],
)
def test_only_an_index_that_does_not_answer_is_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], code: int, said: str
) -> None:
    monkeypatch.setattr(bootstrap, "OPT_ML", tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended_with:
        bootstrap.run_pip(sys.executable, ["zz-no-such"], [])
    assert ended_with.value.code == code
    assert re.search(said, (tmp_path / "output" / "message").read_text())


def test_a_function_by_value_is_told_of_another_python_before_pip_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "OPT_ML", tmp_path)
    bootstrap.check_python({"python": "3.9", "by_value": False})
    with pytest.raises(SystemExit) as ended_with:
        bootstrap.check_python({"python": "3.9", "by_value": True})
    assert ended_with.value.code == 1
    assert "travels by value from Python 3.9" in (tmp_path / "output" / "message").read_text()


def test_hashes_are_for_all_of_the_users_requirements_and_not_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[list[str], list[str]]] = []
    monkeypatch.setattr(bootstrap, "run_pip", lambda _, lines, constraints: calls.append((lines, constraints)))
    hashed = ["zzbase==1.0 --hash=sha256:00", "zzneeds==1.0 --hash=sha256:11"]
    bootstrap.install(["click>=1", "zzours"], hashed, [])
    assert calls == [(["zzours"], ["zzbase==1.0", "zzneeds==1.0"]), (hashed, [])]
    calls.clear()
    bootstrap.install(["click>=1", "zzours"], ["zzbase", "click<99"], ["zzdeep<2"])
    assert calls == [(["zzbase", "click<99", "zzours"], ["zzdeep<2", "click>=1"])]
    assert bootstrap.missing(["click>=1 --hash=sha256:00", "--require-hashes"]) == []


def test_another_source_of_this_package_is_another_digest(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "room").mkdir(parents=True)
    (package / "room" / "code.py").write_text("a = 1")
    seen = {bootstrap.source_digest(package)}
    (package / "room" / "notes.txt").write_text("no code")
    (package / "templates").mkdir()
    (package / "templates" / "example.py").write_text("of the user's")
    assert bootstrap.source_digest(package) in seen
    (package / "room" / "code.py").write_text("a = 2")
    seen.add(bootstrap.source_digest(package))
    (package / "room" / "more.py").touch()
    seen.add(bootstrap.source_digest(package))
    (package / "room" / "more.py").rename(package / "more.py")
    seen.add(bootstrap.source_digest(package))
    (package / "more.py").rename(package / "other.py")
    seen.add(bootstrap.source_digest(package))
    assert len(seen) == 5
    own = bootstrap.source_digest(PACKAGE)
    assert [bootstrap.has_same_shardkit(digest) for digest in (own, *seen)] == [True, *[False] * 5]


def test_an_environment_by_hand_is_one(tmp_path: Path) -> None:
    folder = tmp_path / "it's an env"
    pyenv.make(str(folder), pyenv.described())
    code = "import sys, click, site; print(sys.prefix, sys.base_prefix != sys.prefix, click.__file__)"
    done = subprocess.run([folder / "bin" / "python", "-c", code], capture_output=True, text=True, check=True)
    import click

    assert done.stdout.strip() == f"{folder} True {click.__file__}"
    done = subprocess.run([folder / "bin" / "pip", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("pip ")


# ---- requirements --------------------------------------------------------------------------------------------------

TEXT = "# größer\nzzbase==1.0\n"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.replace("\n", "\r\n").encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        TEXT.encode("latin-1"),
        b"# -*- coding: latin-1 -*-\n" + TEXT.encode("latin-1"),
    ],
)
def test_a_file_is_read_as_pip_reads_it(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "needs.txt").write_bytes(data)
    assert Requirements.of(tmp_path / "needs.txt").lines == ["zzbase==1.0"]


def test_what_a_file_names_goes_along(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "wheels", "zzbase", "1.0")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "more.txt").write_text("-r deep.txt\n../wheels/zzbase-1.0-py3-none-any.whl\n")
    (tmp_path / "sub" / "deep.txt").write_text("numpy>1,\\\n  <9  # two lines\n")
    (tmp_path / "pins.txt").write_text("pandas<9\n")
    (tmp_path / "needs.txt").write_text(
        f"--require-hashes\n-r sub/more.txt\n-c pins.txt\n--find-links ./wheels\nzz @ file://{wheel}; python_version>'3'\n"
        "x @ https://${TOKEN}@example.org/x.whl\nzzp==1; sys_platform=='linux' --hash=sha256:00\n"
    )
    needs = Requirements.of(tmp_path / "needs.txt")
    kept = next(name for name in needs.files if not name.startswith("links"))
    links = next(name for name in needs.files if name.startswith("links")).partition("/")[0]
    assert needs.constraints == ["pandas<9"]
    assert needs.lines[:4] == [
        "--require-hashes",
        "numpy>1,  <9",
        f"{{files}}/{kept}",
        f"--find-links {{files}}/{links}",
    ]
    assert needs.lines[4].startswith(f"zz @ file://{{files}}/{kept}")
    assert needs.lines[4].replace(" ", "").endswith(";python_version>'3'")
    assert needs.lines[5:] == [
        "x @ https://${TOKEN}@example.org/x.whl",
        "zzp==1; sys_platform=='linux' --hash=sha256:00",
    ]
    assert {file.resolve() for file in needs.files.values()} == {wheel.resolve()}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-e ./tool", "needs.txt, line 2 holds an editable requirement"),
        ("./missing.whl", "needs.txt, line 2 names ./missing.whl, and there is no such file"),
        ("./tool", "needs.txt, line 2 names the folder ./tool"),
        ("-r needs.txt", "takes itself in"),
        ("-r https://example.org/r.txt", "which is no file"),
        ("--target /somewhere", "holds the option '--target /somewhere'"),
        ("tool @ https://ci:hunter2@example.org/tool.whl", r"line 2 looks like it holds a secret: .*ci:\*\*\*@"),
        ("--index-url https://ci:hunter2@example.org/", "line 2 looks like it holds a secret"),
        ("-i https://hunter2@example.org/", "line 2 looks like it holds a secret"),
    ],
)
def test_what_no_job_can_have_is_told_by_its_line(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "tool").mkdir()
    (tmp_path / "needs.txt").write_text(f"zzbase\n{line}\n")
    with pytest.raises(sk.PipelineError, match=said) as caught:
        Requirements.of(tmp_path / "needs.txt")
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "needs.txt").write_bytes(b"caf\xe9==1\n")
    with pytest.raises(sk.PipelineError, match=r"needs.txt is no text in utf-8"):
        Requirements.of(tmp_path / "needs.txt")


# ---- linked folders ------------------------------------------------------------------------------------------------


def test_linked_folders_go_along_and_loops_end(tmp_path: Path) -> None:
    source, shared = tmp_path / "src", tmp_path / "shared"
    for folder in (source, shared):
        folder.mkdir()
        (folder / "code.py").touch()
    (source / "lib").symlink_to("../shared")
    (source / "lib2").symlink_to("../shared")
    (source / "self").symlink_to(".")
    (source / "gone").symlink_to("../nowhere")
    (shared / "back").symlink_to("../src")
    (tmp_path / "data").mkdir()
    (source / "data").symlink_to("../data")
    (tmp_path / "data" / "large.bin").touch()
    names = sorted(name for name, _ in source_files(str(source), (str(tmp_path / "data"),)))
    assert names == ["code.py", "lib/code.py", "lib2/code.py"]
