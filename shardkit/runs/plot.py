"""The timeline of a run, drawn by matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError, RunNotFound
from shardkit.runfolder.timings import chunk_timings
from shardkit.units import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from shardkit.runfolder.folder import RunFolder

NAMES_SHOWN = 30  # workers
JOBS_SHOWN = 8  # in the legend
LANE_INCHES, WIDTH_INCHES = 0.22, 9.0


def plot_timeline(folder: RunFolder, ax: Axes | None = None) -> Axes:
    """Draw the chunks of a run over time, one line a worker, in ``ax`` or axes of their own.

    Raises:
        PipelineError: matplotlib is not installed.
        RunNotFound: no chunk says when it was worked on.
    """
    try:
        from matplotlib import colormaps, pyplot
    except ModuleNotFoundError:
        raise PipelineError(
            "run.plot() needs matplotlib, which is not installed.", hint="Run: pip install matplotlib"
        ) from None
    chunks = chunk_timings(folder)
    spans: list[dict[str, Any]] = chunks.filter(chunks["begin"].is_valid()).to_pylist()
    if not spans:
        raise RunNotFound(f"No chunk of run {folder.run_id} says when it was worked on.", hint="Has it begun?")
    first, last = min(span["begin"] for span in spans), max(span["end"] for span in spans)
    lanes = sorted({(span["job"] or "", span["worker"]) for span in spans})
    jobs = sorted({job for job, _ in lanes})
    if ax is None:
        _, ax = pyplot.subplots(figsize=(WIDTH_INCHES, 1.2 + LANE_INCHES * min(len(lanes), NAMES_SHOWN)))
    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]
    for place, lane in enumerate(lanes):
        own = [span for span in spans if (span["job"] or "", span["worker"]) == lane]
        bars = [((s["begin"] - first).total_seconds(), (s["end"] - s["begin"]).total_seconds()) for s in own]
        colour = colours[jobs.index(lane[0]) % len(colours)]
        ax.broken_barh(bars, (place - 0.4, 0.8), facecolors=colour, edgecolor="white", linewidth=0.3)
    for job in jobs[:JOBS_SHOWN] if len(jobs) > 1 else ():
        ax.plot([], [], linewidth=6, color=colours[jobs.index(job) % len(colours)], label=job)
    if len(jobs) > 1:
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small", frameon=False)
    if len(lanes) <= NAMES_SHOWN:
        ax.set_yticks(range(len(lanes)), [worker for _, worker in lanes], fontsize="small")
    else:
        ax.set_yticks([])
        ax.set_ylabel(counted(len(lanes), "worker"))
    ax.invert_yaxis()
    ax.set_xlim(0, max((last - first).total_seconds(), 1e-6))
    ax.set_xlabel("seconds")
    ax.set_title(f"Run {folder.run_id}: {counted(len(spans), 'chunk')}", fontsize="medium")
    return ax
