"""From a pipeline to its plan, and from a plan back to its pipeline."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, cast

from shardkit.dataset.checks import check_form, check_not_replaced, check_owner
from shardkit.errors import PipelineError, PlanMismatch
from shardkit.functions import FunctionRef, python_version, reference
from shardkit.hints import Hint
from shardkit.spec.sections import InsideFiles
from shardkit.storage.local_folder import LocalFolder
from shardkit.times import now
from shardkit.traits import Short, fields_with

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from shardkit.dataset.merge import Merge
    from shardkit.plan.compare import Aside, Comparison
    from shardkit.plan.digests import Basis
    from shardkit.plan.inside import Cutter
    from shardkit.plan.plan import Plan
    from shardkit.plan.records import Records
    from shardkit.runfolder.document_types import PlanDocument, Result
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.list_types import PlannedList
    from shardkit.spec.spec import Spec
    from shardkit.storage.base import Folder


def planned_pipeline(plan: PlanDocument, settings: Mapping[str, Any]) -> Spec:
    """The pipeline in a plan, with other settings, if these may change.

    Raises:
        PlanMismatch: a setting would change what is computed.
    """
    from shardkit.explain import unknown_field
    from shardkit.spec.changes import changeable, may_change
    from shardkit.spec.spec import Spec

    content = dict(plan["pipeline"])
    for name, value in settings.items():
        section, _, field = name.partition(".")
        if section not in Spec.model_fields:
            raise PipelineError(f"{name}: {unknown_field(section, list(Spec.model_fields))}")
        if not may_change(section, field):
            raise PlanMismatch(
                f"{name} cannot change between a run and its resumption: it decides what is computed.",
                hint=f"Start a new run instead; a resumption takes {', '.join(changeable())}.",
            )
        short = fields_with(Spec, Short).get(name)
        if short is not None and short.is_number(value) and isinstance(content.get(name), dict):
            field = short.field
        content[section] = (content.get(section) or {}) | {field: value} if field else value
    pipeline = Spec(**content)
    if "output.partition_by" in settings:
        _check_partitions(pipeline.output.partition_by)
    return pipeline


def make_run_plan(
    pipeline: Spec,
    *,
    function_ref: FunctionRef,
    run_id: str,
    days: tuple[str, ...] | None = None,
    recompute: bool = False,
    workers: int | None = None,
    max_jobs: int | None = None,
    origin: str | None = None,
) -> Plan:
    """List the input and plan a run; writes nothing.

    With ``days`` only these are looked at; ``recompute`` plans all records, whatever earlier runs have done. Chunks are
    cut for ``workers``, by default as many as the pipeline says. With ``max_jobs`` there are so many jobs at most, each
    on a machine of its own, as on an engine. ``origin`` is the folder of the code on the machine from which a run would
    be resumed, if it is another than here.

    Raises:
        InputError: the input is empty or cannot be read.
        PipelineError: the output lies around the input, or belongs to another pipeline.
    """
    from shardkit.macro import make_plan
    from shardkit.runs.listing import with_roots

    pipeline, output = with_roots(pipeline), pipeline.output_folder()
    _check_apart(pipeline.input_folders(), output)
    _check_output(pipeline)
    current = check_owner(output, pipeline.pipeline_name())
    content = pipeline.to_dict()
    records, lists = _records(pipeline, output, content)
    if days is not None:
        records = records.of_days(days)
    comparison, basis = None, _basis(pipeline, content, function_ref)
    if (pipeline.by_day or pipeline.is_incremental) and not recompute:
        comparison = _compared(pipeline, records, current, basis, all_days=days is None, run_id=run_id)
    # For a resumption in another directory, or on the machine that has sent the code.
    content["source_dir"] = origin or content["source_dir"] or function_ref.source_dir
    plan = make_plan(
        records,
        pipeline=content,
        function_digest=function_ref.digest,
        chunks=pipeline.chunks,
        workers=workers or pipeline.worker_count(),
        run_id=run_id,
        created=now(),
        own_instances=(pipeline.engine is not None or max_jobs is not None) and pipeline.worker_count() > 1,
        max_jobs=max_jobs,
        by_day=pipeline.by_day,
        comparison=comparison,
        at_once=pipeline.calling(function_ref).chunk_records,
    )
    plan = _with_launching(plan, pipeline)
    plan.content.update({"work": basis.work, "form": basis.form, "merge_digest": basis.merge, "lists": lists})
    if comparison is not None and (aside := comparison.aside_of_plan) is not None:
        plan.content["aside"] = aside
    if comparison is not None and plan.content["totals"]["records"]:
        check_form(plan.content, current, basis.form, output)
    return plan


def _compared(
    pipeline: Spec, records: Records, current: Result | None, basis: Basis, *, all_days: bool, run_id: str
) -> Comparison:
    """The records compared with what earlier runs have left."""
    from shardkit.plan.compare import compare

    output, again = pipeline.output_folder(), not pipeline.is_incremental
    aside = None if again else _aside(pipeline, output, current, run_id)
    return compare(records.table, output, current, basis, all_days=all_days, recompute=again, aside=aside)


def _aside(pipeline: Spec, output: Folder, current: Result | None, run_id: str) -> Aside | None:
    """The run whose new files have failed a check and are kept aside, as long as the dataset lacks them.

    ``run_id`` is the run that is planned.
    """
    from shardkit.dataset.held import checks_stand, kept_aside
    from shardkit.plan.compare import Aside

    found = kept_aside(output, current, but=run_id)
    if found is None or found[1]["result"]["by_day"] != pipeline.by_day:
        return None
    folder, held = found
    made, stands = held["result"], checks_stand(held, pipeline.merge().checks, current)
    return Aside(folder.run_id, made["partitions"], made["form"], stands)


def _with_launching(plan: Plan, pipeline: Spec) -> Plan:
    """The plan, which says where the jobs of its engine are launched, and how fast."""
    from shardkit.plan.describe import Launching

    engine = pipeline.engine
    if engine is None:
        return plan
    launching = Launching(engine.title, engine.creates_per_s, engine.create_call, engine.larger_types)
    return replace(plan, launching=launching)


def _records(pipeline: Spec, output: Folder, content: dict[str, Any]) -> tuple[Records, list[PlannedList]]:
    """The records of the whole input, and what the plan notes of its manifests."""
    from shardkit.plan.records import build_records
    from shardkit.runs.listing import list_input

    objects, facts = list_input(pipeline, output)
    records = build_records(
        objects,
        records=_records_rule(pipeline),
        pattern=pipeline.input.globs("pattern"),
        exclude=pipeline.input.globs("exclude"),
        shards=content["shards"],
    )
    return records, [cast("PlannedList", asdict(each)) for each in facts]


def _basis(pipeline: Spec, content: dict[str, Any], function_ref: FunctionRef) -> Basis:
    """What decides whether the rows of an earlier run are those that this one would make."""
    from shardkit.plan.digests import Basis, work_digest

    merging = pipeline.merge()
    return Basis(
        by_day=pipeline.by_day,
        work=work_digest(content, function_ref.digest),
        work_before=work_digest(content, function_ref.digest, named=False),
        merge=merging.digest(),
        form=merging.layout.form(content["shards"]),
    )


def _check_output(pipeline: Spec) -> None:
    """See that readers will find the partitions, and that the checks of the new files can be made here, if they are."""
    _check_partitions(pipeline.output.partition_by)
    if pipeline.checks is not None and pipeline.engine is None:
        from shardkit.dataset.data_checks import check_queries

        check_queries(pipeline.checks.model_dump())


def _check_partitions(columns: Collection[str]) -> None:
    """See that readers will find the partitions; runs that an earlier version planned go on nevertheless."""
    hidden = next((name for name in columns if name.startswith(("_", "."))), None)
    if hidden is not None:
        raise PipelineError(
            f"output.partition_by: folders named {hidden}=... are hidden from pandas, Spark and others.",
            hint=f"Name the column otherwise, such as {hidden.lstrip('_.') or 'part'}.",
        )


def _check_apart(sources: list[Folder], output: Folder) -> None:
    """See that the output is a folder, and that it does not hold the input."""
    for source in sources:
        _check_not_around(source, output)
    if isinstance(output, LocalFolder):
        root = output.root
        below_a_file = next((path for path in (root, *root.parents) if path.exists() and not path.is_dir()), None)
        if below_a_file is not None:
            raise PipelineError(
                f"The output {root}: {below_a_file} is a file, not a folder.", hint="Choose another output."
            )


def _check_not_around(source: Folder, output: Folder) -> None:
    if isinstance(source, LocalFolder) and isinstance(output, LocalFolder):
        around = output.root.resolve() in {source.root.resolve(), *source.root.resolve().parents}
    else:
        around = f"{source.uri}/".startswith(f"{output.uri}/")
    if around:
        raise PipelineError(
            f"The output {output.uri} holds the input {source.uri}.",
            hint="Choose an output beside the input.",
        )


def _records_rule(pipeline: Spec) -> str | Callable[[str], str | None] | Cutter:
    rule = pipeline.records
    if isinstance(rule, str) and ":" in rule:
        named: Callable[[str], str | None] = reference(rule, source_dir=pipeline.source_dir).load()
        return named
    if isinstance(rule, InsideFiles):
        from shardkit.plan.inside import Cutter

        return Cutter(rule.rule, pipeline.places(as_user=True))
    return rule


def check_same_plan(folder: RunFolder, plan: Plan) -> None:
    """See that a run that exists already has the same plan.

    Raises:
        PlanMismatch: it has another one.
    """
    from shardkit.plan.digests import differences

    before = folder.plan()
    if before["digest"] != plan.digest:
        raise PlanMismatch(
            f"Run {folder.run_id} has another plan: {'; '.join(differences(before, plan.content))}.",
            hint=Hint(
                "Start a new run without run_id, or undo the change.",
                "Start a new run without --run-id, or undo the change.",
            ),
        )


def is_new(folder: RunFolder, plan: Plan, *, may_exist: bool) -> bool:
    """Whether a planned run is still to be written; one that exists already has to have this very plan.

    Only a run that ``may_exist``, because its id was given, is looked for. The caller holds its lock.

    Raises:
        PlanMismatch: it exists with another plan, or remains of an earlier run of its name are left.
        RunReplaced: it exists, and a later run has replaced its dataset.
    """
    if not may_exist:
        return True
    if not folder.exists():
        folder.check_unused()
        return True
    check_same_plan(folder, plan)
    check_not_replaced(folder)
    return False


def write_run(folder: RunFolder, plan: Plan, ref: FunctionRef, merging: Merge, *, merge: bool) -> None:
    """Write a planned run's folder: its plan, its records and the functions that travel by value."""
    pickled = {"function": ref.pickled, "combine": merging.combine.pickled if merging.combine else None}
    content: PlanDocument = {**plan.content, "merge": merge, "python": python_version()}
    folder.write_plan(content, plan.records, pickled, plan.taken_over)


def planned_merge(folder: RunFolder, pipeline: Spec, settings: Collection[str]) -> Merge:
    """What pass 2 of a resumption has to do; a ``combine`` that travels by value is the one in the run folder."""
    pickled = None if "combine" in settings else folder.pickled("combine")
    if pickled is None:
        return pipeline.merge()
    sent = FunctionRef(str(pipeline.combine), None, "", pickled)
    return replace(pipeline.replace(combine=None).merge(), combine=sent)
