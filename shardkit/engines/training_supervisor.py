"""The process that runs one local training job: as for a Processing job, but for the places of files and its ends.

    python -c "from shardkit.engines.training_supervisor import main; main()" ROOT JOB

Spot instances are taken away by a file, ``interrupt``, and a signal: the program gets SIGTERM and later SIGKILL. Then
it begins again on instances with nothing on them but the checkpoints, or the job ends. The standard library alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import tarfile
import time
from typing import TYPE_CHECKING, Any

from shardkit.engines import isolation, kernel, supervisor
from shardkit.engines.supervisor import TERMINATED, Supervisor, mapped
from shardkit.engines.transfer import InputMissing, Outputs

if TYPE_CHECKING:
    from shardkit.engines.jobfiles import JobFiles

CHANNELS = "/opt/ml/input/data/"
CHECKPOINTS = "/opt/ml/checkpoints"
CONFIG = "ml/input/config"  # in a volume
FOLDERS = ("ml/model", "ml/output/data", CONFIG, "ml/input/data", "ml/checkpoints")
INTERRUPTION = "interrupt"  # in a job's folder: "restart", or "end"
INTERRUPTED = "Interrupted: the spot instances were taken back."
WHY_STOPPED = ("MaxRuntimeExceeded", "MaxWaitTimeExceeded", "Interrupted")
ARTIFACTS = {"model.tar.gz": "ml/model", "output.tar.gz": "ml/output/data"}


def main() -> None:
    """Run the job, in a process of its own."""
    supervisor.main(TrainingSupervisor)


class TrainingSupervisor(Supervisor):
    """Runs one training job."""

    message_file = "failure"

    def __init__(self, files: JobFiles) -> None:
        super().__init__(files)
        self._training: dict[str, Any] = self._job["training"]
        self._changes: list[dict[str, Any]] = []
        self._interruption = os.path.join(files.folder, INTERRUPTION)
        self._restarts = False
        self._ran_s = 0.0
        wait_s = (self._training.get("StoppingCondition") or {}).get("MaxWaitTimeInSeconds")
        self._last_moment = self._job["created"] + wait_s if wait_s is not None else float("inf")

    def _enter(self, status: str) -> None:
        """Note the next secondary status."""
        now = time.time()
        if self._changes:
            self._changes[-1].setdefault("EndTime", now)
        self._changes.append({"Status": status, "StartTime": now})
        self._say(transitions=self._changes)

    def _work(self) -> dict[str, Any]:
        while True:
            self._restarts = False
            self._enter("Starting")
            end = super()._work()
            if not self._restarts:
                return end
            if time.time() >= self._last_moment:
                return {"ProcessingJobStatus": "Stopped", "why_stopped": "MaxWaitTimeExceeded"}
            self._begin_again()

    def _begin_again(self) -> None:
        """Have instances on which nothing is but what comes from elsewhere."""
        if not isolation.ends_whole(self._job["isolation"]):
            kernel.kill_descendants()
        self._files.remove_volumes()
        self._outputs = Outputs(self._request, self._volumes, self._porter)
        self._failed, self._stop_reason, self._deadline = None, None, float("inf")
        self._keepers = {}
        with contextlib.suppress(BlockingIOError):  # the signal of the interruption, if the program ended before a look
            os.read(self._signals, 1024)
        self._preparing = True

    # ---- before ----------------------------------------------------------------------------------------------

    def _write_configuration(self, host: str, folder: str) -> None:
        del folder
        volume = self._volumes[host]
        for name in FOLDERS:
            os.makedirs(os.path.join(volume, name), exist_ok=True)
        super()._write_configuration(host, os.path.join(volume, CONFIG))
        os.remove(os.path.join(volume, CONFIG, "processingjobconfig.json"))
        files = {
            "hyperparameters.json": self._training.get("HyperParameters") or {},
            "inputdataconfig.json": {channel["ChannelName"]: _told(channel) for channel in self._channels},
        }
        for name, content in files.items():
            with open(os.path.join(volume, CONFIG, name), "w", encoding="utf-8") as file:
                json.dump(content, file)

    @property
    def _channels(self) -> list[dict[str, Any]]:
        return self._training.get("InputDataConfig") or []

    def _bring(self) -> None:
        self._enter("Downloading")
        super()._bring()
        if kept := self._training.get("CheckpointConfig"):
            source = {"S3Uri": f"{kept['S3Uri'].rstrip('/')}/", "LocalPath": kept.get("LocalPath", CHECKPOINTS)}
            given = {"InputName": "checkpoints", "S3Input": source | {"S3DataType": "S3Prefix"}}
            try:
                self._porter.bring({"ProcessingInputs": [given]}, self._volumes)
            except InputMissing as error:
                if not str(error).startswith("No objects found"):  # there are none before the first interruption
                    raise

    def _program(self, host: str, volume: str) -> isolation.Program:
        program = super()._program(host, volume)
        own = {"TRAINING_JOB_NAME": self._files.name, "TRAINING_JOB_ARN": self._job["arn"]}
        if self._job["isolation"] == isolation.NONE:
            own |= {name: mapped(value, volume) for name, value in self._variables(host).items()}
        else:
            own |= self._variables(host)
        return program._replace(environment=own | dict(program.environment))

    def _variables(self, host: str) -> dict[str, str]:
        """What SageMaker's own images tell a program."""
        parameters = self._training.get("HyperParameters") or {}
        names = [channel["ChannelName"] for channel in self._channels]
        return {
            "SM_CHANNELS": json.dumps(names),
            **{f"SM_CHANNEL_{name.upper()}": f"{CHANNELS}{name}" for name in names},
            "SM_CURRENT_HOST": host,
            "SM_CURRENT_INSTANCE_TYPE": self._job["instance_type"],
            "SM_HOSTS": json.dumps(self._hosts),
            "SM_HPS": json.dumps(parameters),
            **{f"SM_HP_{name.upper().replace('-', '_')}": value for name, value in parameters.items()},
            "SM_INPUT_CONFIG_DIR": "/opt/ml/input/config",
            "SM_INPUT_DIR": "/opt/ml/input",
            "SM_MODEL_DIR": "/opt/ml/model",
            "SM_NETWORK_INTERFACE_NAME": "lo",
            "SM_NUM_GPUS": "0",
            "SM_OUTPUT_DATA_DIR": "/opt/ml/output/data",
            "SM_OUTPUT_DIR": "/opt/ml/output",
        }

    # ---- while it runs ---------------------------------------------------------------------------------------

    def _wait(self, limit: float) -> None:
        self._enter("Training")
        begun = time.monotonic()
        left_s = max(0.0, min(limit - self._ran_s, self._last_moment - time.time()))
        self._deadline = begun + left_s
        if os.path.exists(self._interruption):
            self._begin_to_stop(TERMINATED)
        super()._wait(limit)
        self._ran_s += time.monotonic() - begun

    def _check_stop(self, *, unasked: bool = False) -> None:
        """Let an interruption wait until there is a program to interrupt."""
        super()._check_stop(unasked=unasked and not os.path.exists(self._interruption))

    def _begin_to_stop(self, reason: str) -> None:
        if reason == TERMINATED and os.path.exists(self._interruption):
            with open(self._interruption, encoding="ascii") as file:
                self._restarts = file.read() == "restart"
            os.remove(self._interruption)
            reason = INTERRUPTED
        elif reason.startswith("MaxRuntimeExceeded") and time.time() >= self._last_moment:
            reason = "MaxWaitTimeExceeded: the job took longer than MaxWaitTimeInSeconds."
        super()._begin_to_stop(reason)

    def _note_stopping(self) -> None:
        if self._stop_reason == INTERRUPTED:
            self._enter("Interrupted")
        else:
            self._enter("Stopping")
            super()._note_stopping()

    # ---- after -----------------------------------------------------------------------------------------------

    def _finish(self) -> dict[str, Any]:
        stopped = self._stop_reason
        if stopped == INTERRUPTED:
            end = super()._finish()  # the checkpoints
        else:
            self._enter("Uploading")
            end = super()._finish()
            if not end.get("FailureReason", "").startswith("ClientError"):
                end |= self._upload_artifacts()
        end.pop("ExitMessage", None)
        if end["ProcessingJobStatus"] == "Stopped":
            end.pop("FailureReason", None)
            why = next((why for why in WHY_STOPPED if (stopped or "").startswith(why)), "Stopped")
            end["why_stopped"] = why
        return end

    def _upload_artifacts(self) -> dict[str, Any]:
        """Upload what is in the folders for the model and for other output; returns the failure, if it fails."""
        where = f"{self._training['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{self._files.name}/output"
        files = []
        for name, folder in ARTIFACTS.items():
            roots = [os.path.join(volume, folder) for volume in self._volumes.values()]
            if any(os.path.isdir(root) and os.listdir(root) for root in roots):
                path = os.path.join(self._volumes[self._hosts[0]], name)
                with tarfile.open(path, "w:gz") as archive:
                    for root in roots:
                        with contextlib.suppress(FileNotFoundError):
                            archive.add(root, arcname=".")
                files.append((path, name, where))
        try:
            self._porter.send(files, settled=True)
        except OSError as error:
            return {"ProcessingJobStatus": "Failed", "FailureReason": f"ClientError: Artifact upload failed: {error}"}
        return {}


def _told(channel: dict[str, Any]) -> dict[str, Any]:
    """What ``inputdataconfig.json`` says about a channel."""
    source = channel["DataSource"]["S3DataSource"]
    return {
        "TrainingInputMode": channel.get("InputMode", "File"),
        "S3DistributionType": source.get("S3DataDistributionType", "FullyReplicated"),
        "RecordWrapperType": channel.get("RecordWrapperType", "None"),
    }
