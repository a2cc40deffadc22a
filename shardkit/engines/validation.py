"""Says whether a request is one that the service would take, by botocore's model of it and by the rules it lacks.

What botocore checks before it sends anything is raised as it does, with ParamValidationError; what the service would
find is refused as the service does, with a ClientError.
"""

from __future__ import annotations

import base64
import functools
import json
import re
import uuid
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NoReturn

from botocore.exceptions import ClientError, ParamValidationError
from botocore.validate import ParamValidator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from botocore.model import ServiceModel, Shape

INVALID = "ValidationException"
INPUT_ROOT = "/opt/ml/processing/"
LOCAL_URI = re.compile(r"(/|file:///).*", re.DOTALL)  # what the local engine takes beside S3
BOOTSTRAP = "/opt/ml/processing/input/code/bootstrap.sh"


def refuse(operation: str, code: str, message: str, status: int = 400) -> NoReturn:
    """Raise the error with which the service refuses a call."""
    about = {"RequestId": str(uuid.uuid4()), "HTTPStatusCode": status, "HTTPHeaders": {}, "RetryAttempts": 0}
    raise ClientError({"Error": {"Code": code, "Message": message}, "ResponseMetadata": about}, operation)


@functools.cache
def service_model(service: str = "sagemaker") -> ServiceModel:
    """Botocore's description of a service; it takes a moment to load, once a process."""
    from botocore.loaders import Loader
    from botocore.model import ServiceModel

    return ServiceModel(Loader().load_service_model(service, "service-2"), service)


def check(operation: str, request: dict[str, Any], service: str = "sagemaker") -> None:
    """Check a request against the service's model.

    Raises:
        ParamValidationError: a field is missing, unknown or of another type.
        ClientError: ValidationException, a value does not satisfy a constraint.
    """
    shape = service_model(service).operation_model(operation).input_shape
    if shape is None:
        return
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        raise ParamValidationError(report=report.generate_report())
    violations = list(_violations(request, shape, ""))
    if violations:
        errors = "error" if len(violations) == 1 else "errors"
        code = INVALID if service == "sagemaker" else "InvalidParameterException"
        refuse(operation, code, f"{len(violations)} validation {errors} detected: {'; '.join(violations)}")


def _violations(value: Any, shape: Shape, path: str) -> Iterator[str]:
    """The constraints that a value does not satisfy, in the service's words."""
    kind = shape.type_name
    if kind == "structure":
        for name, content in value.items():
            yield from _violations(content, shape.members[name], f"{path}.{_lower(name)}" if path else _lower(name))
        return
    prefix = f"Value '{value}' at '{path}' failed to satisfy constraint: Member must"
    for problem in _problems(value, shape):
        yield f"{prefix} {problem}"
    if kind == "list":
        for i, content in enumerate(value):
            yield from _violations(content, shape.member, f"{path}.{i + 1}.member")
    elif kind == "map":
        for key, content in value.items():
            for part, part_shape in ((key, shape.key), (content, shape.value)):
                which = "keys" if part is key else "value"
                for problem in _problems(part, part_shape):
                    yield f"{prefix[: -len('Member must')]}Map {which} must {problem}"


def _problems(value: Any, shape: Shape) -> Iterator[str]:
    """The problems of one value: its size, its range, its pattern, or that it is not one of the allowed ones."""
    about = shape.metadata
    if shape.type_name in ("string", "list", "map"):
        if len(value) > about.get("max", len(value)):
            yield f"have length less than or equal to {about['max']}"
        if len(value) < about.get("min", 0):
            yield f"have length greater than or equal to {about['min']}"
    elif shape.type_name in ("integer", "long"):
        if value > about.get("max", value):
            yield f"have value less than or equal to {about['max']}"
        if value < about.get("min", value):
            yield f"have value greater than or equal to {about['min']}"
    if shape.type_name != "string":
        return
    if "enum" in about and value not in about["enum"]:
        yield f"satisfy enum value set: [{', '.join(about['enum'])}]"
    pattern = about.get("pattern")
    local = shape.name == "S3Uri" and LOCAL_URI.fullmatch(value)
    if pattern and not local and not _pattern(pattern).fullmatch(value):
        yield f"satisfy regular expression pattern: {pattern}"


@functools.cache
def _pattern(pattern: str) -> re.Pattern[str]:
    r"""A pattern of the model; Python has no \p{L}, which are letters, nor \p{Z} and \p{N}."""
    for theirs, ours in ((r"\p{L}", r"\w"), (r"\p{Z}", r"\s"), (r"\p{N}", r"\d")):
        pattern = pattern.replace(theirs, ours)
    return re.compile(pattern)


def _lower(name: str) -> str:
    return name[:1].lower() + name[1:]


# ---- what the model does not say ---------------------------------------------------------------------------------


def instances(request: dict[str, Any]) -> tuple[str, int]:
    """The instance type of a job (the first of its preferences) and how many it asks for."""
    cluster = request["ProcessingResources"]["ClusterConfig"]
    preferences = cluster.get("InstancePreferences") or []
    kind = cluster.get("InstanceType") or (preferences[0]["InstanceType"] if preferences else "")
    own = preferences[0].get("InstanceCount") if preferences else None
    return kind, cluster.get("InstanceCount") or own or 1


def check_rules(request: dict[str, Any], *, isolated: bool) -> None:
    """Check the rules that the service's model does not hold, and what the local engine cannot do."""
    for problem in _broken(request, isolated=isolated):
        refuse("CreateProcessingJob", INVALID, problem)


def _broken(request: dict[str, Any], *, isolated: bool) -> Iterator[str]:
    """Every rule that a request breaks, in the words of the refusal."""
    yield from _broken_by_cluster(request["ProcessingResources"]["ClusterConfig"])
    yield from broken_by_entrypoint(request["AppSpecification"], BOOTSTRAP, "AppSpecification", isolated=isolated)
    inputs = request.get("ProcessingInputs") or []
    outputs = (request.get("ProcessingOutputConfig") or {}).get("Outputs") or []
    for given in inputs:
        yield from _broken_by_input(given)
    for given in outputs:
        yield from _broken_by_output(given)
    yield from twice("InputName", [given["InputName"] for given in inputs])
    yield from twice("OutputName", [given["OutputName"] for given in outputs])
    paths = [given["S3Input"].get("LocalPath") for given in inputs if "S3Input" in given]
    yield from twice("LocalPath of an input", [path.rstrip("/") for path in paths if path])
    yield from twice("Tag key", [tag["Key"] for tag in request.get("Tags") or []])


def twice(what: str, values: list[str]) -> Iterator[str]:
    """The refusals of values that are given more than once."""
    for value in sorted({value for value in values if values.count(value) > 1}):
        yield f"{what} must be unique; {value!r} is given more than once."


def _broken_by_cluster(cluster: dict[str, Any]) -> Iterator[str]:
    preferences = cluster.get("InstancePreferences") or []
    for field in ("SelectedInstanceType", "SelectedInstanceCount"):
        if field in cluster:
            yield f"{field} is read-only and is not accepted in CreateProcessingJob requests."
    if bool(preferences) == ("InstanceType" in cluster):
        yield "ClusterConfig must have exactly one of InstanceType and InstancePreferences."
    yield from twice("InstanceType in InstancePreferences", [given["InstanceType"] for given in preferences])
    counted = sum("InstanceCount" in given for given in preferences)
    if counted and (counted < len(preferences) or "InstanceCount" in cluster):
        yield "InstanceCount must be given once for the job, or with every one of the InstancePreferences."


def broken_by_entrypoint(application: dict[str, Any], bootstrap: str, field: str, *, isolated: bool) -> Iterator[str]:
    """The refusals of a program that the local engine cannot start; ``field`` is where the request names it."""
    entrypoint = application.get("ContainerEntrypoint")
    for name in ("ContainerEntrypoint", "ContainerArguments"):
        if "" in application.get(name, ()):
            yield f"{name} must not hold an empty string."
    if not entrypoint:
        yield f"The local engine has no image to take an entrypoint from: give {field}.ContainerEntrypoint."
    elif not isolated and bootstrap not in entrypoint:
        yield (
            "This machine does not let a job have an /opt/ml of its own (no user namespaces, or the engine was "
            f"made with isolation='none'), so that only shardkit's own jobs run here, which start with {bootstrap}."
        )


def _broken_by_input(given: dict[str, Any]) -> Iterator[str]:
    name = given["InputName"]
    if ("S3Input" in given) == ("DatasetDefinition" in given):
        yield f"Input {name} must have exactly one of S3Input and DatasetDefinition."
    if given.get("AppManaged"):
        return
    if "DatasetDefinition" in given:
        yield f"Input {name} has a DatasetDefinition; the local engine brings S3Input only."
    wanted = given.get("S3Input", {})
    if "S3Input" in given:
        yield from _broken_by_path(f"Input {name}", wanted.get("LocalPath"), under=INPUT_ROOT)
    if wanted.get("S3InputMode") == "Pipe":
        yield f"Input {name} has S3InputMode Pipe; the local engine knows File only."
    elif wanted.get("S3CompressionType") == "Gzip":
        yield f"Input {name} has S3CompressionType Gzip, which can only be used when S3InputMode is Pipe."


def _broken_by_output(given: dict[str, Any]) -> Iterator[str]:
    name = given["OutputName"]
    if ("S3Output" in given) == ("FeatureStoreOutput" in given):
        yield f"Output {name} must have exactly one of S3Output and FeatureStoreOutput."
    if given.get("AppManaged"):
        return
    if "FeatureStoreOutput" in given:
        yield f"Output {name} has a FeatureStoreOutput, which is only supported when AppManaged is true."
    if "S3Output" in given:
        yield from _broken_by_path(f"Output {name}", given["S3Output"].get("LocalPath"), under="/opt/ml/")


def _broken_by_path(whose: str, path: str | None, *, under: str) -> Iterator[str]:
    if not path:
        yield f"{whose} must have a LocalPath when AppManaged is false."
    elif not path.startswith(under) or ".." in path.split("/"):
        yield f"{whose} has the LocalPath {path}; it must begin with {under}."


# ---- lists -------------------------------------------------------------------------------------------------------


def moment(value: Any) -> datetime | None:
    """A point in time as botocore takes it (a datetime, seconds, or text), with a time zone."""
    if value is None:
        return None
    from botocore.utils import parse_to_aware_datetime

    time: datetime = parse_to_aware_datetime(value)
    return time.astimezone(timezone.utc)


def make_token(request: dict[str, Any], after: tuple[str, str]) -> str:
    """The NextToken of a page that ends with ``after``."""
    return base64.urlsafe_b64encode(json.dumps([_order(request), *after]).encode()).decode()


def read_token(request: dict[str, Any]) -> tuple[str, str] | None:
    """Where the page before ended; None for the first page.

    Raises:
        ClientError: ValidationException, this is no token of such a list.
    """
    token = request.get("NextToken")
    if not token:
        return None
    try:
        order, value, name = json.loads(base64.urlsafe_b64decode(token.encode()))
    except ValueError:
        order = value = name = None
    if order != _order(request) or not isinstance(value, str) or not isinstance(name, str):
        refuse("ListProcessingJobs", INVALID, "The NextToken is not one that a list with these arguments gave.")
    return value, name


def _order(request: dict[str, Any]) -> str:
    return f"{request.get('SortBy', 'CreationTime')} {request.get('SortOrder', 'Descending')}"
