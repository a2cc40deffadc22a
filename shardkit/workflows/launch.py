"""The program of a step on this machine: it sets the step's folder and environment, and becomes the step's command.

    ... launch.py RUN_FOLDER JOB

What it has to do is in ``RUN_FOLDER/steps/JOB.json``. That file has no secrets, only the names of the variables that
hold them; and no command line has them either.

Standard library only, and little of it, so that a step begins in a few milliseconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, NoReturn

NOT_FOUND, CANNOT_RUN = 127, 126


def main() -> NoReturn:
    """Run the step that the arguments name."""
    folder, job = sys.argv[1:]
    with open(os.path.join(folder, "steps", f"{job}.json"), encoding="utf-8") as file:
        become(json.load(file))


def become(about: dict[str, Any]) -> NoReturn:
    """Become the command of a step.

    ``about`` has ``words``, ``folder``, ``env`` (the step's own variables), ``secrets`` (its variables that hold
    secrets, and the variables that these are taken from), ``hidden`` (variables that are no business of the step's),
    ``output`` (a folder that is made, if it is one of this machine) and ``container`` (the words that remove a
    container which an earlier attempt has left behind).
    """
    environment = dict(os.environ)
    missing = [name for name in about["secrets"].values() if name not in environment]
    if missing:
        _fail(f"There is no variable {missing[0]}, which holds a secret of this step. Set it, and resume.", CANNOT_RUN)
    secrets = {name: environment[place] for name, place in about["secrets"].items()}
    for name in about["hidden"]:
        environment.pop(name, None)
    environment |= about["env"] | secrets
    if about["output"]:
        os.makedirs(about["output"], exist_ok=True)
    if about["container"]:
        subprocess.run(about["container"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)  # noqa: S603
    words = about["words"]
    try:
        os.chdir(about["folder"])
        os.execvpe(words[0], words, environment)  # noqa: S606  the command of the user's own file
    except FileNotFoundError as error:
        _fail(f"{error.filename or words[0]}: there is no such program or folder.", NOT_FOUND)
    except OSError as error:
        _fail(f"{words[0]}: {error.strerror}.", CANNOT_RUN)


def _fail(text: str, code: int) -> NoReturn:
    print(text, file=sys.stderr, flush=True)  # noqa: T201  the step's log
    raise SystemExit(code)
