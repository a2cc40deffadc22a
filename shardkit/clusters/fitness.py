"""Whether the nodes of a cluster can work on a run, which each of them proves before any work."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from shardkit.clusters.node import read_a_byte
from shardkit.errors import RunFailed, ShardkitError

if TYPE_CHECKING:
    from shardkit.clusters.base import Answered, Cluster
    from shardkit.clusters.node import NodeWork
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.stop import Stop
    from shardkit.workers.tasks import WorkerSettings

PAUSES_S = (0.5, 1.0, 2.0, 4.0)  # before nodes that have not answered are asked again, if they are still there
PROOF_S = 300.0  # for all nodes, some of which may only be starting
LOOK_S = 0.1


def check_nodes(cluster: Cluster, folder: RunFolder, work: NodeWork, stop: Stop) -> None:
    """See that every node reads the input and writes the output.

    One that ends meanwhile is no node any more; such as come later prove themselves with their first chunk.

    Raises:
        RunFailed: one does not; the message names it.
    """
    for pause_s in PAUSES_S:
        answers = _answers(cluster, work, stop)
        if not any(each.error is not None and not _lacks_a_package(each.error) for each in answers):
            break
        time.sleep(pause_s)
    for each in answers:
        _check(cluster, folder, work, each)


def readable_object(folder: RunFolder, settings: WorkerSettings) -> str | None:
    """The key of an object of the input that can be read here; an object may have been deleted since it was listed."""
    for key in folder.some_objects(8):
        with contextlib.suppress(ShardkitError, OSError):
            read_a_byte(settings, key)
            return key
    return None


def _answers(cluster: Cluster, work: NodeWork, stop: Stop) -> list[Answered]:
    """The nodes' answers; none if the run is to stop.

    Raises:
        RunFailed: they do not come.
    """
    answers: list[Answered] = []
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            answers.extend(cluster.on_each_node(work.prove))
        except BaseException as error:  # noqa: BLE001  it is raised below
            errors.append(error)

    asking = threading.Thread(target=ask, name="shardkit-nodes", daemon=True)
    asking.start()
    deadline = time.monotonic() + PROOF_S
    while asking.is_alive():
        asking.join(LOOK_S)
        if stop.asked:
            return []
        if time.monotonic() > deadline:
            raise RunFailed(
                f"The nodes of the cluster have not all answered within {PROOF_S:g} s.",
                hint="See that the cluster is well; then run or resume.",
            )
    if errors:
        raise RunFailed(
            f"The nodes of the cluster cannot be asked: {type(errors[0]).__name__}: {line_of(errors[0])}.",
            hint=cluster.cure if _lacks_a_package(errors[0]) else "See that the cluster is well; then run or resume.",
        ) from errors[0]
    return answers


def _check(cluster: Cluster, folder: RunFolder, work: NodeWork, each: Answered) -> None:
    """See that a node can do its work.

    Raises:
        RunFailed: it cannot.
    """
    if each.error is not None:
        raise _unfit(cluster, each, each.error)
    answer = each.answer
    if answer["shardkit"] != work.shardkit:
        raise RunFailed(
            f"{each.node} has shardkit {answer['shardkit']}, and this process has {work.shardkit}.", hint=cluster.cure
        )
    if work.function_sha256 is not None and answer["python"] != work.python:
        raise RunFailed(
            f"The function travels by value from Python {work.python}, and {each.node} has Python {answer['python']}.",
            hint="Put the function in a module and set source_dir, or use one version of Python.",
        )
    where = f"{each.node}: {answer['error']}" if "error" in answer else ""
    if not where and not folder.files.exists(answer["noted"]):
        where = f"{each.node}: what {answer['node']} writes to {folder.uri} does not arrive there."
    if where:
        raise RunFailed(
            f"A node of the cluster cannot work on the run. {where}",
            hint=answer.get("hint")
            or "All nodes need the same storage: a bucket, or a folder that each of them has mounted.",
        )


def _unfit(cluster: Cluster, each: Answered, error: BaseException) -> RunFailed:
    if _lacks_a_package(error):
        return RunFailed(f"{each.node} lacks a package: {line_of(error)}.", hint=cluster.cure)
    return RunFailed(
        f"{each.node} does not answer: {type(error).__name__}: {line_of(error)}.",
        hint="See that the cluster is well; then run or resume.",
    )


def _lacks_a_package(error: BaseException) -> bool:
    return isinstance(error, ModuleNotFoundError) or "ModuleNotFoundError" in str(error)


def line_of(error: BaseException | None) -> str:
    """The error's last line, where libraries put what matters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")
