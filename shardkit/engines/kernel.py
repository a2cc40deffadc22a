"""The kernel's calls behind isolation: namespaces, mounts, and which process ends with which.

Standard library only: this runs in the supervisor, between fork and exec.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

NEWNS, NEWUSER, NEWPID, NEWNET = 0x00020000, 0x10000000, 0x20000000, 0x40000000
BIND, REC, PRIVATE = 0x1000, 0x4000, 0x40000
NOSUID, NODEV, NOEXEC = 0x2, 0x4, 0x8
SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36


def exit_code(status: int) -> int:
    """The exit code that a shell would show: a process killed by signal N has 128 + N."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def adopt_orphans() -> None:
    """Become the parent of every process below whose own parent dies, so that it is not lost."""
    prctl(SET_CHILD_SUBREAPER, 1)


def kill_descendants(spare: int = 0) -> None:
    """Kill every process that this one, or one of its children, has started, until none is left."""
    for _ in range(1000):
        processes = descendants(os.getpid()) - {spare}
        if not processes:
            return
        for process in processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # not the spared one: another function waits for its exit code
                os.waitpid(process, os.WNOHANG)


def children_of(processes: set[int]) -> set[int]:
    """The children of these processes that the system lists."""
    return {child for child, parent in _parents().items() if parent in processes}


def descendants(process: int) -> set[int]:
    """The children of a process, and theirs, that the system lists; without zombies."""
    parents = _parents()
    below: set[int] = set()
    fresh = {process}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - below
        below |= fresh
    return below


def _parents() -> dict[int, int]:
    """The parent of every process that the system lists."""
    parents: dict[int, int] = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as f:
                    fields = f.read().rpartition(")")[2].split()
                    if fields[0] != "Z":
                        parents[int(name)] = int(fields[1])
    return parents


def graft(folder: str, target: str, stage: str) -> None:
    """Let ``target`` show ``folder`` in this mount namespace, even if there is no such path to mount on.

    The nearest folder above that exists is then replaced by a small one in memory, which shows the same entries and the
    missing path. ``stage`` is a folder for it; it is made, and stays empty.
    """
    if os.path.isdir(target):
        mount(folder, target, "", BIND | REC)
        return
    above = nearest(target)
    os.makedirs(stage, exist_ok=True)
    mount("tmpfs", stage, "tmpfs", NOSUID | NODEV, "mode=755,size=1m")
    for entry in list(os.scandir(above)):
        _show(entry, os.path.join(stage, entry.name))
    inner = os.path.join(stage, os.path.relpath(target, above))
    os.makedirs(inner)
    mount(folder, inner, "", BIND | REC)
    if above == "/":
        os.chroot(stage)
        os.chdir("/")
    else:
        mount(stage, above, "", BIND | REC)


def nearest(path: str) -> str:
    """The folder itself, or the nearest one above it that is there."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _show(entry: os.DirEntry[str], place: str) -> None:
    """Let ``place`` show what lies at ``entry``."""
    if entry.is_symlink():
        os.symlink(os.readlink(entry.path), place)
        return
    if entry.is_dir():
        os.mkdir(place)
    else:
        with open(place, "w", encoding="ascii"):
            pass
    mount(entry.path, place, "", BIND | REC)


def make_private() -> None:
    """Hide from the outside what is mounted here."""
    mount("none", "/", "", REC | PRIVATE)


def redirect(log: str) -> None:
    """Read nothing, write to the log."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(nothing, 0)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave some namespaces; in a new user namespace the user and the group stay the same."""
    user, group = os.geteuid(), os.getegid()
    _checked(_libc().unshare(flags), "unshare")
    if flags & NEWUSER:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)


def loopback_up() -> None:
    """Bring up the loopback interface, which is down in a new network namespace."""
    import fcntl
    import socket
    import struct

    up, set_flags = 1, 0x8914
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh22x", b"lo", up))


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount a file system or a folder; the flags are those of the system call."""
    result = _libc().mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _checked(result, f"mount {target}")


def prctl(option: int, value: int) -> None:
    """Set something of this process, where the kernel is Linux."""
    if sys.platform.startswith("linux"):
        _checked(_libc().prctl(option, ctypes.c_ulong(value), 0, 0, 0), "prctl")


def die_with(parent: int, number: signal.Signals) -> None:
    """Get a signal when the parent dies, also when it has died already."""
    prctl(SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
