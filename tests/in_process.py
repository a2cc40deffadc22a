"""Commands of the program in the tests' own process, where their words and exit codes are all that is asked for.

They take a few milliseconds; a process of its own takes as long only to begin and to end.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from click.testing import CliRunner, Result

from shardkit.cli.app import cli

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def command(*arguments: object, code: int = 0) -> Result:
    """Run a command of the program; ``code`` is the exit code that is expected."""
    done = CliRunner().invoke(cli, list(map(str, arguments)), env={"COLUMNS": "120"}, prog_name="shardkit")
    assert done.exit_code == code, f"exit code {done.exit_code}\n{done.output}"
    return done


class InProcess:
    """Runs commands; ``modules`` are the user's own, of which each test has another one by the same name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
        self._monkeypatch, self._modules = monkeypatch, modules

    def __call__(self, folder: Path, *arguments: str | Path, code: int = 0) -> Result:
        """Run one in a folder; ``code`` is the exit code that is expected."""
        self._monkeypatch.chdir(folder)
        self._monkeypatch.syspath_prepend(folder)
        for name in self._modules:
            self._monkeypatch.delitem(sys.modules, name, raising=False)
        return command(*arguments, code=code)
