"""Tests with the libraries that read training data: scripts/test-training runs them."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("datasets") is None:
    collect_ignore_glob = ["test_*.py"]
