"""Jobs of a run as SageMaker training jobs: the same container, code and run folder, but spot and warm instances.

A request is made for Processing first, and put into the words of CreateTrainingJob here. What differs for the program:

    Processing                              training
    /opt/ml/processing/input/code           /opt/ml/input/data/code          a channel for each input
    /opt/ml/config/processingjobconfig.json TRAINING_JOB_NAME in the environment
    its StoppingCondition                   SHARDKIT_MAX_RUNTIME             which shardkit sets itself
    /opt/ml/output/message                  /opt/ml/output/failure           read only if the program fails

The service uploads ``/opt/ml/model`` by itself, where it finds anything in it; shardkit leaves nothing there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Request = dict[str, Any]
PROCESSING_INPUTS, CHANNELS = "/opt/ml/processing/input/", "/opt/ml/input/data/"
DAY_S = 86400  # the service's own limit for a job whose request has none


class Terms(NamedTuple):
    """On which instances a training job runs: taken back at any time, or kept after the job.

    ``max_wait`` is how many seconds a job on spot instances may take with all waits for them, ``keep_alive`` how many
    seconds instances are kept for the next job.
    """

    spot: bool = False
    max_wait: int | None = None
    keep_alive: int | None = None


def as_training(request: Request, terms: Terms, *, leftovers: str, key: str | None) -> Request:
    """A CreateProcessingJob request as one for CreateTrainingJob, without TrainingJobName.

    ``leftovers`` is the URI of the folder for what the service uploads by itself, ``key`` the key for that.
    """
    application = request["AppSpecification"]
    training: Request = {
        "AlgorithmSpecification": {
            "TrainingImage": application["ImageUri"],
            "TrainingInputMode": "File",
            "ContainerEntrypoint": [
                word.replace(PROCESSING_INPUTS, CHANNELS) for word in application["ContainerEntrypoint"]
            ],
        },
        "RoleArn": request["RoleArn"],
        "InputDataConfig": [_channel(given) for given in request.get("ProcessingInputs") or []],
        "OutputDataConfig": {"S3OutputPath": leftovers} | ({"KmsKeyId": key} if key else {}),
        "ResourceConfig": dict(request["ProcessingResources"]["ClusterConfig"]),
        "StoppingCondition": {"MaxRuntimeInSeconds": DAY_S} | (request.get("StoppingCondition") or {}),
    }
    if words := application.get("ContainerArguments"):
        training["AlgorithmSpecification"]["ContainerArguments"] = words
    if not training["InputDataConfig"]:
        del training["InputDataConfig"]
    training |= {name: request[name] for name in ("Environment", "Tags") if name in request}
    training |= _network(request.get("NetworkConfig") or {})
    _add_terms(training, terms, own_limit="StoppingCondition" in request)
    limit = str(training["StoppingCondition"]["MaxRuntimeInSeconds"])
    training["Environment"] = {"SHARDKIT_MAX_RUNTIME": limit} | training.get("Environment", {})
    return training


def _channel(given: Request) -> Request:
    source = given["S3Input"]
    kept = ("S3DataType", "S3Uri", "S3DataDistributionType")
    s3 = {name: source[name] for name in kept if name in source}
    return {"ChannelName": given["InputName"], "DataSource": {"S3DataSource": s3}, "InputMode": "File"}


def _network(network: Request) -> Request:
    names = {"EnableInterContainerTrafficEncryption", "EnableNetworkIsolation", "VpcConfig"}
    return {name: value for name, value in network.items() if name in names and value}


def _add_terms(training: Request, terms: Terms, *, own_limit: bool) -> None:
    """Add what makes instances spot or warm; of spot instances none is kept."""
    limits = training["StoppingCondition"]
    if terms.spot:
        if terms.max_wait is not None and not own_limit:
            limits["MaxRuntimeInSeconds"] = min(limits["MaxRuntimeInSeconds"], terms.max_wait)
        limits["MaxWaitTimeInSeconds"] = terms.max_wait or limits["MaxRuntimeInSeconds"]
        training["EnableManagedSpotTraining"] = True
    elif terms.keep_alive:
        training["ResourceConfig"]["KeepAlivePeriodInSeconds"] = terms.keep_alive
