"""The jobs of a planned run, as requests: what each of them reads, which program it runs, with which arguments.

A job gets the run folder's URI and its number as arguments, and reads everything else from the plan. Names begin with
the run, so that a list of the service's jobs shows which jobs belong to a run.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shardkit.errors import PipelineError
from shardkit.jobs import Submission
from shardkit.jobs.policy import LARGER
from shardkit.jobs.submitting import user_name
from shardkit.runs.container.job import INPUT_FOLDER
from shardkit.storage.base import is_remote, scheme_of
from shardkit.tables.arrays import arrow, numpy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pyarrow as pa

    from shardkit.engines.settings import Settings
    from shardkit.runfolder.document_types import PlanDocument, PlannedJob
    from shardkit.runfolder.folder import RunFolder
    from shardkit.spec.spec import Spec

OPT_ML = "/opt/ml"
CODE_FOLDER = f"{OPT_ML}/processing/input/code"
LEFTOVERS = "leftovers"  # in a run folder: what a service uploads by itself
ENTRYPOINT = ("/bin/sh", f"{CODE_FOLDER}/bootstrap.sh")


LONGEST_END = len("-g9999-00000-9999")  # what the names of jobs have beside their common beginning


def name_base(folder: RunFolder, pipeline_name: str, engine: Settings) -> str:
    """The beginning of the names of all jobs of a run: the pipeline, the run, and a digest of the output."""
    where = hashlib.sha256(folder.uri.encode()).hexdigest()[:6]
    room = engine.longest_name - LONGEST_END - len(f"--{where}")
    run = slug(folder.run_id, min(22, room - 4))
    base = f"{slug(pipeline_name, min(14, room - len(run)))}-{run}-{where}"
    return base.lower() if engine.lower_case_names else base


def slug(text: str, length: int) -> str:
    """A text as a part of a job's name, of at most so many characters."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:length].strip("-") or "run"


@dataclass(frozen=True)
class Requests:
    """Makes the submissions of one generation of a run's jobs.

    A generation is what one `run`, `resume` or `retry` submits. ``code`` is the URI of the folder with the code;
    ``changes`` are settings that replace those of the plan.
    """

    folder: RunFolder
    pipeline: Spec
    plan: PlanDocument
    code: str
    generation: int
    changes: Mapping[str, Any]
    retry: bool = False

    @property
    def prefix(self) -> str:
        """The beginning of the ids of the generation's jobs."""
        return f"{name_base(self.folder, self.plan['pipeline']['name'], self._engine)}-g{self.generation}-"

    def submissions(self, jobs: list[PlannedJob]) -> list[Submission]:
        """Pass 1 for these jobs of the plan, and after all of them pass 2, with which the run ends."""
        queue = self.pipeline.queue
        owner = (queue.owner or user_name()) if queue is not None else ""
        notify = queue.notify if queue is not None else ()
        run = name_base(self.folder, self.plan["pipeline"]["name"], self._engine)
        tags = {"output": self.folder.output.uri, "run_id": self.folder.run_id}
        larger = {LARGER: " ".join(self._engine.larger_types)} if self._engine.larger_types else {}
        first = [
            Submission(f"{self.prefix}{job['job']:05d}", self._pass1(job), (), owner, run, tags=larger) for job in jobs
        ]
        needs = [job.job_id for job in first]
        last = Submission(f"{self.prefix}merge", self._pass2(), needs, owner, run, notify, tags)
        return [*first, last]

    @property
    def _engine(self) -> Settings:
        engine = self.pipeline.engine
        if engine is None:
            raise PipelineError("The pipeline has no engine.", hint="Set engine: in it, or give one to run().")
        return engine

    @functools.cached_property
    def _settings(self) -> list[str]:
        """The arguments for settings that replace the plan's: a file in the run folder, as arguments are short."""
        of_the_driver = ("engine", "max_cost")
        changes = {name: value for name, value in self.changes.items() if not name.startswith(of_the_driver)}
        if callable(changes.get("combine")):
            raise PipelineError(
                "combine: the jobs of a resumption take no function by value.", hint="Give it as 'module:callable'."
            )
        if self._engine.local and self.pipeline.workers == "auto":
            changes["workers"] = self._engine.vcpus  # its instances share one machine
        if not changes:
            return []
        name = f"settings/{self.generation}.json"
        self.folder.files.write(name, json.dumps(changes, default=os.fspath).encode())
        return ["--settings", name]

    def _pass1(self, job: PlannedJob) -> dict[str, Any]:
        words = ["pass1", "--run", self.folder.uri, "--job", str(job["job"]), *self._settings]
        inputs = [self._code_input()]
        if self.retry:
            words.append("--retry")
        if self.pipeline.input_mode == "download":
            words.append("--download")
            inputs.append(self._data_input(job))
        return self._request(words, inputs, instances=job["instances"])

    def _pass2(self) -> dict[str, Any]:
        words = ["pass2", "--run", self.folder.uri, *self._settings]
        return self._request(words, [self._code_input()], engine=self._engine.for_merge())

    def _request(
        self,
        words: list[str],
        inputs: list[dict[str, Any]],
        *,
        instances: int = 1,
        engine: Settings | None = None,
    ) -> dict[str, Any]:
        engine = engine or self._engine
        return engine.request(
            entrypoint=ENTRYPOINT,
            arguments=words,
            inputs=inputs,
            environment=engine.job_environment(),
            instances=instances,
            leftovers=f"{self.folder.uri}/{LEFTOVERS}",
        )

    def _code_input(self) -> dict[str, Any]:
        return prefix_input("code", self.code, CODE_FOLDER)

    def _data_input(self, job: PlannedJob) -> dict[str, Any]:
        """The input of a job: a directory if the shard is one, else the list of the shard's objects."""
        self._check_volume(job)
        local = f"{OPT_ML}/{INPUT_FOLDER}"
        source = self.plan["pipeline"]["input"]["uri"].rstrip("/")
        rule = self.plan["pipeline"]["shards"] or {}
        shards = [self.plan["shards"][shard] for shard in job["shards"]]
        whole = shards[0]["group"] if rule.get("by") == "directory" and self._engine.places_inputs else None
        if whole and whole != "." and whole.count("/") + 1 == rule["depth"]:  # else there are other groups below it
            return prefix_input("data", f"{source}/{whole}/", f"{local}/{whole}")
        dealt_out = job["instances"] > 1
        picked = {"manifest", "include_list", "exclude_list"} & self.plan["pipeline"]["input"].keys()
        if dealt_out and not (picked or self.plan["totals"]["objects_left_out"] or self.plan["datasets_left_out"]):
            return prefix_input("data", f"{source}/", local, distribution="ShardedByS3Key")
        manifest = self._write_manifest(job, source)
        distribution = "ShardedByS3Key" if dealt_out else "FullyReplicated"
        return prefix_input("data", manifest, local, distribution=distribution, kind="ManifestFile")

    def _write_manifest(self, job: PlannedJob, source: str) -> str:
        name = f"manifests/{job['job']:05d}.json"
        if not self.folder.files.exists(name):
            content: list[Any] = [{"prefix": f"{source}/"}, *self._objects(job["shards"])]
            self.folder.files.write(name, json.dumps(content, ensure_ascii=False).encode())
        return f"{self.folder.uri}/{name}"

    def _objects(self, shards: list[int]) -> Iterator[str]:
        shard, objects = self._records_by_shard
        for number in shards:
            begin, end = np.searchsorted(shard, [number, number + 1]).tolist()
            for keys in objects.slice(begin, end - begin).to_pylist():
                yield from keys

    @functools.cached_property
    def _records_by_shard(self) -> tuple[np.ndarray, pa.Array]:
        """Each record's shard and its objects, the shards in order."""
        table = self.folder.records(["shard", "objects"])
        shard = numpy(table["shard"])
        order = np.argsort(shard, kind="stable")
        return shard[order], table["objects"].combine_chunks().take(arrow(order))

    def _check_volume(self, job: PlannedJob) -> None:
        most = max(self.plan["shards"][shard]["bytes"] for shard in job["shards"])
        self._engine.check_volume(job["job"], most)


def prefix_input(
    name: str, uri: str, path: str, *, distribution: str = "FullyReplicated", kind: str = "S3Prefix"
) -> dict[str, Any]:
    """A ProcessingInput: the objects whose keys begin with that of ``uri``, in the folder ``path`` of an instance."""
    return {
        "InputName": name,
        "AppManaged": False,
        "S3Input": {
            "S3Uri": uri,
            "LocalPath": path,
            "S3DataType": kind,
            "S3InputMode": "File",
            "S3DataDistributionType": distribution,
            "S3CompressionType": "None",
        },
    }


def check_engine(pipeline: Spec) -> None:
    """See that jobs of this engine can do what the pipeline asks for.

    Raises:
        PipelineError: they cannot; the message names the field.
    """
    engine = pipeline.engine
    if engine is None:
        return
    rule = pipeline.shards
    instances = (rule.instances if rule is not None else None) or 1
    engine.check_instances(rule.by if rule is not None else "", instances)
    _check_places(pipeline, engine)
    _check_python(pipeline, engine)
    if engine.isolated:
        raise PipelineError(
            "engine.network: with enable_network_isolation a job cannot write its parts to S3.",
            hint="Give subnets and security groups with an S3 endpoint, and requirements_mode: bundle.",
        )


def _check_places(pipeline: Spec, engine: Settings) -> None:
    """See that the jobs can reach the input and the output."""
    inputs = [("input", part.uri) for part in pipeline.input.places() if part.uri is not None]
    for name, uri in (*inputs, ("output", pipeline.output.uri)):
        if is_remote(uri) and scheme_of(uri) not in engine.stores:
            raise PipelineError(
                f"{name}.uri: {uri} is in a store that jobs of an engine cannot use.",
                hint="Give s3://bucket/prefix; or run without an engine, in the processes of one machine.",
            )
        if not engine.sees_local_paths and not is_remote(uri):
            raise PipelineError(
                f"{name}.uri: {uri} is a folder of this machine, which jobs on {engine.title} do not see.",
                hint="Give s3://bucket/prefix; or try the jobs here first, with engine: local.",
            )
    source = pipeline.input
    if pipeline.input_mode == "download" and source.parts:
        raise PipelineError(
            "input_mode: download brings one input to a job, and this pipeline has several.",
            hint="Use input_mode: stream.",
        )
    if pipeline.input_mode == "download" and (source.requester_pays or source.anonymous):
        named = "requester_pays" if source.requester_pays else "anonymous"
        raise PipelineError(
            f"input.{named}: with input_mode: download the service brings the input, signs, and does not pay.",
            hint="Use input_mode: stream.",
        )


def _check_python(pipeline: Spec, engine: Settings) -> None:
    """Compare the minor versions of Python, if the engine knows that of the jobs."""
    from shardkit.functions import python_version

    there = engine.python_version()
    if there is None or pipeline.function_ref().pickled is None:
        return
    if there != python_version():
        raise PipelineError(
            f"engine.image: the function travels by value from Python {python_version()}, and the image has {there}.",
            hint=f"Choose an image with Python {python_version()}, or put the function in a module.",
        )
