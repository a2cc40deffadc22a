"""A Python environment for one instance of a local job, which sees the packages of the engine's as its image's.

    <volume>/env/bin/python, pip     first on the instance's PATH: what a program installs, it installs here

It is made by hand in a millisecond, with what ``python -m venv`` makes but for pip, which the engine's environment has.
What shardkit's own jobs install is kept for the next job that needs the same (see ``container/bootstrap.py``):

    <root>/environments/<digest>/

The supervisor imports this: standard library only, and little of it.
"""

from __future__ import annotations

import os
import site
import sys
from typing import Any

KEPT = "environments"
BASE = "_shardkit_base.pth"  # container/bootstrap.py knows it too
# What would have pip install elsewhere than into the environment that it runs in.
ELSEWHERE = {"PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_ROOT", "PIP_PYTHON", "PIP_REQUIRE_VIRTUALENV"}
_TOOL = '#!/bin/sh\nexec {python} -m {module} "$@"\n'


def described() -> dict[str, Any]:
    """This process's Python and where its packages are, as plain data."""
    sites = list(getattr(site, "getsitepackages", list)())
    if site.ENABLE_USER_SITE:
        sites.insert(0, site.getusersitepackages())
    base = getattr(sys, "_base_executable", None) or ""
    return {
        "python": base if os.path.exists(base) else os.path.realpath(sys.executable),
        "version": ".".join(map(str, sys.version_info[:3])),
        "sites": [folder for folder in sites if os.path.isdir(folder)],
    }


def make(folder: str, about: dict[str, Any]) -> None:
    """Make an environment in ``folder``, on top of the one that ``described()`` describes."""
    minor = about["version"].rpartition(".")[0]
    packages = os.path.join(folder, "lib", f"python{minor}", "site-packages")
    binaries = os.path.join(folder, "bin")
    os.makedirs(packages)
    os.makedirs(binaries)
    config = {"home": os.path.dirname(about["python"]), "include-system-site-packages": "false"}
    _write(
        os.path.join(folder, "pyvenv.cfg"),
        "".join(f"{key} = {value}\n" for key, value in (config | {"version": about["version"]}).items()),
    )
    # Of a folder that a .pth file names Python does not read the .pth files; of one that is added so, it does.
    lines = "".join(f"import site; site.addsitedir({below!r})\n" for below in about["sites"])
    _write(os.path.join(packages, BASE), lines)
    for name in ("python", "python3", f"python{minor}"):
        os.symlink(about["python"], os.path.join(binaries, name))
    python = _quoted(os.path.join(binaries, "python"))
    for name in ("pip", "pip3", f"pip{minor}"):
        _write(os.path.join(binaries, name), _TOOL.format(python=python, module="pip"), mode=0o755)


def variables(folder: str, about: dict[str, Any], root: str, environment: dict[str, str]) -> dict[str, str]:
    """The variables with which a program uses the environment in ``folder``."""
    kept = {name: value for name, value in environment.items() if name not in ELSEWHERE}
    return kept | {
        "PATH": f"{os.path.join(folder, 'bin')}:{environment['PATH']}",
        "VIRTUAL_ENV": folder,
        "PYTHONUSERBASE": os.path.join(folder, "user"),
        "SHARDKIT_ENVIRONMENTS": os.path.join(root, KEPT),
        "SHARDKIT_SITES": os.pathsep.join(about["sites"]),
    }


def _quoted(path: str) -> str:
    return "'" + path.replace("'", "'\\''") + "'"


def _write(path: str, text: str, *, mode: int = 0o644) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)
