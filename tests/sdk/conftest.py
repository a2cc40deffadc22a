"""Tests against a real SageMaker SDK: scripts/test-sdk runs them, with one SDK after the other."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("sagemaker") is None:
    collect_ignore_glob = ["test_*"]
