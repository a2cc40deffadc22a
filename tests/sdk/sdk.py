"""The names of the SDK that is installed, the same for both."""

from __future__ import annotations

import importlib.util
from typing import Any

MAJOR = 3 if importlib.util.find_spec("sagemaker.core") else 2
# Otherwise each call of an SDK reports itself to its makers, over the network.
QUIET = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}

if MAJOR == 3:
    from sagemaker.core.helper.pipeline_variable import PipelineVariable
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.core.network import NetworkConfig
    from sagemaker.core.processing import FrameworkProcessor, Processor, ScriptProcessor
    from sagemaker.core.shapes import ProcessingInput, ProcessingOutput, ProcessingS3Input, ProcessingS3Output
    from sagemaker.core.spark.processing import PySparkProcessor
    from sagemaker.core.workflow.parameters import ParameterInteger, ParameterString
else:
    from sagemaker.network import NetworkConfig
    from sagemaker.processing import FrameworkProcessor, ProcessingInput, ProcessingOutput, Processor, ScriptProcessor
    from sagemaker.session import Session
    from sagemaker.sklearn import SKLearn
    from sagemaker.sklearn.processing import SKLearnProcessor
    from sagemaker.spark.processing import PySparkProcessor
    from sagemaker.workflow.entities import PipelineVariable
    from sagemaker.workflow.parameters import ParameterInteger, ParameterString

__all__ = [
    "MAJOR",
    "QUIET",
    "NetworkConfig",
    "ParameterInteger",
    "ParameterString",
    "PipelineVariable",
    "Processor",
    "PySparkProcessor",
    "ScriptProcessor",
    "Session",
    "data_input",
    "framework_processor",
    "output",
    "sklearn_processor",
]


def framework_processor(**options: Any) -> Any:
    """A FrameworkProcessor; 2.x also needs the framework's class."""
    extra = {} if MAJOR == 3 else {"estimator_cls": SKLearn, "framework_version": "1.2-1"}
    return FrameworkProcessor(**extra, **options)


def sklearn_processor(**options: Any) -> Any:
    """A SKLearnProcessor, which only 2.x has; it finds its image by itself."""
    options.pop("image_uri")
    return SKLearnProcessor(framework_version="1.2-1", **options)


def data_input(name: str, uri: str, folder: str) -> Any:
    """A ProcessingInput."""
    if MAJOR == 2:
        return ProcessingInput(input_name=name, source=uri, destination=folder)
    s3 = ProcessingS3Input(s3_uri=uri, local_path=folder, s3_data_type="S3Prefix", s3_input_mode="File")
    return ProcessingInput(input_name=name, s3_input=s3)


def output(name: str, folder: str, uri: str) -> Any:
    """A ProcessingOutput."""
    if MAJOR == 2:
        return ProcessingOutput(output_name=name, source=folder, destination=uri)
    s3 = ProcessingS3Output(s3_uri=uri, local_path=folder, s3_upload_mode="EndOfJob")
    return ProcessingOutput(output_name=name, s3_output=s3)
