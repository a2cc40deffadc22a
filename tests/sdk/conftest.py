"""Tests with real clients, the SageMaker SDKs and the AWS CLI: scripts/test-sdk runs them, with one after the other."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

if importlib.util.find_spec("sagemaker") is None:
    collect_ignore = ["test_requests.py", "test_serve.py"]


@pytest.fixture(autouse=True, scope="session")
def _schema_checked_once() -> Iterator[None]:
    """Let the SDK check its configuration's schema only once: it checks it a dozen times in each call."""
    if importlib.util.find_spec("jsonschema") is None:
        yield
        return
    validators = importlib.import_module("jsonschema.validators")
    checked: dict[int, Any] = {}
    with pytest.MonkeyPatch.context() as patched:
        for kind in (validators.Draft7Validator, validators.Draft202012Validator):
            check = kind.check_schema

            def once(schema: Any, *more: Any, check: Any = check, **options: Any) -> None:
                if id(schema) not in checked:
                    check(schema, *more, **options)
                    checked[id(schema)] = schema

            patched.setattr(kind, "check_schema", once)
        yield
