"""Short names of images, such as ``sklearn:1.4-2-py312``, resolved through a SageMaker SDK where one is installed."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable

SDKS = ("sagemaker.core.image_uris", "sagemaker.image_uris")  # of 3.x and of 2.x; they cannot be installed together
SHORT = re.compile(r"[a-z][a-z0-9-]*:[\w.-]+")  # a framework and a version, without a registry
TAG = re.compile(r"(?P<version>.+?)(?:-(?:cpu|gpu))?(?:-(?P<python>py\d+))?")
CURE = "Give the image's whole URI instead, such as ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG."


def is_short(image: str) -> bool:
    """Whether an image is named by framework and version only."""
    return bool(SHORT.fullmatch(image))


def resolve(image: str, *, region: str, instance_type: str) -> str:
    """The whole URI of an image; one that is whole already stays as it is.

    The instance type decides between the image for CPUs and the one for GPUs.

    Raises:
        PipelineError: no SDK is installed, or it does not know the image.
    """
    if not is_short(image):
        return image
    retrieve = _retriever(image)
    framework, _, tag = image.partition(":")
    parts = TAG.fullmatch(tag)
    tries: list[dict[str, Any]] = [{"version": tag}]  # scikit-learn's tags are versions of their own
    if parts and parts["version"] != tag:
        tries.append({"version": parts["version"], "py_version": parts["python"]})
    for wanted in tries:
        try:
            return str(retrieve(framework, region, instance_type=instance_type, image_scope="training", **wanted))
        except FileNotFoundError:
            reason = f"it has no framework {framework}"
            break
        except Exception as error:  # noqa: BLE001  what an SDK raises is not for us to list
            reason = " ".join(str(error).split()).removesuffix(".")
    raise PipelineError(f"image: the SageMaker SDK here does not know {image}: {reason}.", hint=CURE)


def _retriever(image: str) -> Callable[..., Any]:
    for name in SDKS:
        try:
            retrieve: Callable[..., Any] = importlib.import_module(name).retrieve
        except ImportError:
            continue
        return retrieve
    raise PipelineError(
        f"image: {image} is a short name, which only a SageMaker SDK can resolve, and none is installed.",
        hint=f"pip install sagemaker, or: {CURE[0].lower()}{CURE[1:]}",
    )
