"""Tests with the libraries that read training data: scripts/test-training runs them."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from typing import Any

import pytest

if importlib.util.find_spec("datasets") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def streaming() -> Any:
    """MosaicML's library, which scripts/test-training installs where PyTorch is; skips the test where that is not."""
    load_torchvision()
    return importlib.import_module("streaming")


def load_torchvision() -> None:
    """Load torchvision, which mosaicml-streaming loads, though its package was built for another PyTorch.

    Its own operations are not there then; nothing here calls them, but it describes two of them to PyTorch.
    """
    torch = pytest.importorskip("torch", reason="there is no build of PyTorch without CUDA here")
    with contextlib.suppress(ImportError):
        try:
            import torchvision
        except RuntimeError:
            for name in ("nms", "qnms"):
                torch.library.define(
                    f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
            import torchvision  # noqa: F401
