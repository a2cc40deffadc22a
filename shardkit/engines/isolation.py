"""Runs an instance's program so that it sees its own ``/opt/ml``, and so that none of its processes outlives it.

If the kernel allows it, with or without root, an instance gets a mount namespace and a process namespace of its own:
``/opt/ml`` is its own folder, every other path is the machine's, and when its main process ends, all processes that it
started end. If only bubblewrap may do that (some systems let no other program make user namespaces), bubblewrap does
it. Otherwise the program runs as it is, and finds its folder in the variable ``SHARDKIT_OPT_ML``.

Standard library only: this runs in the supervisor, between fork and exec.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from shardkit.engines.kernel import (
    BIND,
    NEWNET,
    NEWNS,
    NEWPID,
    NEWUSER,
    NODEV,
    NOEXEC,
    NOSUID,
    SET_PDEATHSIG,
    adopt_orphans,
    children_of,
    die_with,
    exit_code,
    graft,
    kill_descendants,
    loopback_up,
    make_private,
    mount,
    nearest,
    prctl,
    redirect,
    unshare,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OPT_ML = "/opt/ml"
HOSTS = "/etc/hosts"
CONTAINER_FAILED = 125  # docker's code too: the container could not be made
CANNOT_RUN = 126
NOT_FOUND = 127

_FORWARDED = {signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD}

# Which namespaces an instance gets, best first. Root needs no user namespace, and would lose rights in one.
KINDS = {
    "pid": NEWNS | NEWPID,
    "user+pid": NEWUSER | NEWNS | NEWPID,
    "mount": NEWNS,
    "user+mount": NEWUSER | NEWNS,
}
BUBBLEWRAP = "bubblewrap"
NONE = "none"


def ends_whole(kind: str) -> bool:
    """Whether the kernel ends all processes of an instance when its keeper dies, whatever kills the keeper."""
    return bool(KINDS.get(kind, 0) & NEWPID)


class Program(NamedTuple):
    """The program of an instance, and the places of its files."""

    command: Sequence[str]
    environment: Mapping[str, str]
    volume: str  # its ml/ is the instance's /opt/ml, its work/ the current folder at the start
    log: str
    network: bool = True  # False: none but its own loopback
    hosts: str = ""  # replaces /etc/hosts


def start(program: Program, kind: str) -> int:
    """Start an instance's program.

    The returned process passes SIGTERM on to the program; SIGUSR1 makes it kill the program and all that it started.
    It exits as the program does: with its exit code, or with 128 + the signal that killed it.

    Returns:
        The process id of the instance's keeper, a child of this process.

    Raises:
        OSError: the namespaces could not be made.
    """
    reader, writer = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        os.close(reader)
        _guarded(lambda: _keep(program, kind, writer), writer)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        problem = pipe.read()
    if problem:
        os.waitpid(keeper, 0)
        raise OSError(problem)
    return keeper


def probe() -> str:
    """The kind of isolation that works here: one of ``KINDS``, ``bubblewrap`` or ``none``."""
    import tempfile

    if not sys.platform.startswith("linux"):
        return NONE
    kinds = [kind for kind in KINDS if os.geteuid() == 0 or kind.startswith("user")] + [BUBBLEWRAP]
    with tempfile.TemporaryDirectory(prefix="shardkit-probe-") as folder:
        os.makedirs(f"{folder}/ml")
        os.makedirs(f"{folder}/work")
        with open(f"{folder}/ml/seen", "w", encoding="ascii"):
            pass
        for kind in kinds:
            program = Program(["test", "-e", f"{OPT_ML}/seen"], os.environ, folder, os.devnull)
            with contextlib.suppress(OSError):
                if os.waitstatus_to_exitcode(os.waitpid(start(program, kind), 0)[1]) == 0:
                    return kind
    return NONE


def _guarded(work: object, writer: int) -> NoReturn:
    """Do the work in this forked process, and never return to the code that forked."""
    try:
        work()  # type: ignore[operator]
    except BaseException as error:  # noqa: BLE001  # whatever it is, it goes to the supervisor
        with contextlib.suppress(OSError):
            os.write(writer, (str(error) or type(error).__name__).encode())
    finally:
        os._exit(CONTAINER_FAILED)


def _keep(program: Program, kind: str, writer: int) -> None:
    """Make the namespaces, start the program in them, and wait for it."""
    supervisor = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    for number in _FORWARDED:
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    signal.set_wakeup_fd(-1)
    for first, last in ((3, writer), (writer + 1, 1024)):
        os.closerange(first, last)  # also the lock that shows that the supervisor lives
    redirect(program.log)
    flags = KINDS.get(kind, 0)
    if flags:
        unshare(flags | (0 if program.network else NEWNET))
        if not program.network:
            loopback_up()
    elif kind == BUBBLEWRAP:
        program = program._replace(command=bubblewrapped(program))
    elif not program.network:
        os.write(2, b"This machine cannot take the network from a job: it runs with it.\n")
    die_with(supervisor, signal.SIGUSR1)
    if flags & NEWPID:
        first = os.fork()
        if first == 0:
            _guarded(lambda: _first_process(program, writer), writer)
        os.close(writer)
        os._exit(_wait(first, tree=False))
    adopt_orphans()
    if flags:
        make_private()
        _graft_all(program)
    code = _wait(_execute(program, writer), tree=True, wrapped=kind == BUBBLEWRAP)
    kill_descendants()
    os._exit(code)


def _first_process(program: Program, writer: int) -> None:
    """Be process 1 of the new process namespace: when it ends, all others end."""
    prctl(SET_PDEATHSIG, signal.SIGKILL)
    make_private()
    mount("proc", "/proc", "proc", NOSUID | NODEV | NOEXEC)
    _graft_all(program)
    os._exit(_wait(_execute(program, writer), tree=False))


def _graft_all(program: Program) -> None:
    """Let the program see its own files where it looks for them."""
    graft(os.path.join(program.volume, "ml"), OPT_ML, os.path.join(program.volume, "stage"))
    if program.hosts:
        try:
            mount(program.hosts, HOSTS, "", BIND)
        except OSError as error:
            os.write(2, f"The names of this job's instances do not resolve here: {error}\n".encode())


def _execute(program: Program, writer: int) -> int:
    """Start the program itself."""
    parent = os.getpid()
    child = os.fork()
    if child:
        os.close(writer)
        return child
    code = CANNOT_RUN
    try:
        die_with(parent, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        for name in ("SIGPIPE", "SIGXFSZ", "SIGINT", "SIGHUP"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        os.umask(0o022)
        os.chdir(os.path.join(program.volume, "work"))
        os.close(writer)
        os.execvpe(program.command[0], list(program.command), dict(program.environment))  # noqa: S606  # as asked
    except (FileNotFoundError, NotADirectoryError) as error:
        code = NOT_FOUND
        os.write(2, f"{program.command[0]}: {error.strerror}\n".encode())
    except OSError as error:
        os.write(2, f"{program.command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(code)


def _wait(child: int, *, tree: bool, wrapped: bool = False) -> int:
    """Wait for ``child``, pass SIGTERM on to it, and kill it on SIGUSR1; return its exit code, or 128 + its signal."""
    while True:
        number = signal.sigwait(_FORWARDED)
        if number == signal.SIGTERM:
            # Bubblewrap itself would die of it at once: the program is the child of its inner process.
            inner = children_of(children_of({child})) if wrapped else set()
            for process in inner or {child}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)
        elif number == signal.SIGUSR1:
            os.kill(child, signal.SIGKILL)
            if tree:
                kill_descendants(spare=child)
        else:
            code = _reap(child)
            if code is not None:
                return code


def _reap(child: int) -> int | None:
    """Reap every process that has ended; return the exit code of ``child`` once it has ended."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while True:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process == 0:
                break
            if process == child:
                code = exit_code(status)
    return code


def bubblewrapped(program: Program) -> list[str]:
    """The command that runs a program in bubblewrap, with the same view as `graft` gives it."""
    import shutil

    path = shutil.which("bwrap")
    if path is None:
        raise OSError("bubblewrap is not installed")
    words = [path, "--die-with-parent", "--unshare-pid", *([] if program.network else ["--unshare-net"])]
    above = nearest(OPT_ML)
    if above != "/":  # else the new root is empty, and gets the entries of the old one
        words += ["--dev-bind", "/", "/"]
    if above not in ("/", OPT_ML):
        words += ["--tmpfs", above]
    if above != OPT_ML:
        for entry in os.scandir(above):
            link = entry.is_symlink()
            words += (
                ["--symlink", os.readlink(entry.path), entry.path] if link else ["--dev-bind", entry.path, entry.path]
            )
    words += ["--proc", "/proc", "--bind", os.path.join(program.volume, "ml"), OPT_ML]
    if program.hosts and os.path.exists(HOSTS):
        words += ["--ro-bind", program.hosts, HOSTS]
    return [*words, "--chdir", os.path.join(program.volume, "work"), "--", *program.command]
