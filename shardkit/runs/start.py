"""Starting and opening runs, for ``shardkit.run``, ``Pipeline.run`` and ``shardkit.open_run``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.dataset.switch import finish_switches
from shardkit.errors import PipelineError
from shardkit.runfolder.find import find_run, run_folder
from shardkit.runs.handle import Run, naming
from shardkit.spec.spec import Spec
from shardkit.storage.base import Access
from shardkit.storage.open import folder as folder_at
from shardkit.times import new_run_id

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence


def start(
    spec: Spec,
    *,
    days: tuple[str, ...] | None = None,
    run_id: str | None = None,
    quiet: bool = False,
    wait: bool = True,
    merge: bool = True,
) -> Run:
    """Run a pipeline, here or on its engine; the arguments are as for `Pipeline.run`.

    Without ``merge`` the dataset is pass 1's parts as they are; this is only for runs on this machine.
    """
    folder, may_exist = run_folder(spec.output_folder(), run_id or new_run_id()), run_id is not None
    with naming(Run(folder)):
        if spec.engine is not None:
            from shardkit.runs.on_engine import start_jobs

            return Run(start_jobs(spec, folder, days=days, may_exist=may_exist, quiet=quiet, wait=wait))
        if spec.queue is not None:
            raise PipelineError("queue: only jobs of an engine go into a queue.", hint="Set engine: too.")
        from shardkit.runs.here import start_run

        return Run(start_run(spec, folder, days=days, may_exist=may_exist, quiet=quiet, merge=merge))


def open_run(output: str | os.PathLike[str], run_id: str | None = None, *, boto_session: Any = None) -> Run:
    """The run with that id under an output, by default the latest.

    With a ``boto_session`` S3 is reached through that, and not as boto3 does by default.

    Raises:
        RunNotFound: there is none.
    """
    root = folder_at(output, Access(boto_session))
    finish_switches(root)
    folder = find_run(root, run_id)
    return Run(folder.encrypted(folder.plan()), whole_dataset=run_id is None)


def run(
    function: str | Callable[..., Any],
    input: str | os.PathLike[str] | Mapping[str, Any] | Sequence[Any],
    output: str | os.PathLike[str],
    *,
    run_id: str | None = None,
    quiet: bool = False,
    **fields: Any,
) -> Run:
    """Run a function over a folder of files into a dataset, and return the finished run.

    Examples:
        >>> run = shardkit.run(features, "data/", "out/", records="stem", pattern="*.dat")     # doctest: +SKIP

    Args:
        function: takes a Record; returns a DataFrame, a pyarrow Table, a dict, an iterable of dicts, or None.
        input: the folder with the files; or a mapping, such as ``{"manifest": "list.csv"}``, or a list of several.
        output: the folder of the dataset.
        run_id: a name for the run; that of an unfinished one goes on with it.
        quiet: show no progress.
        fields: any other field of Pipeline; those of its input and output by their own names, such as ``pattern``.

    Raises:
        PipelineError: something cannot be used as given.
        RunFailed: the dataset could not be made; what is committed is kept.
        RunInterrupted: by Ctrl-C or SIGTERM; it can be resumed.
    """
    return start(Spec.flat(function, input, output, **fields), run_id=run_id, quiet=quiet)
