"""The words that an AWS SAM template is written in, as data."""

from __future__ import annotations

from typing import Any

Data = dict[str, Any]


def ref(name: str) -> Data:
    """The value of a parameter or a resource."""
    return {"Ref": name}


def sub(text: str) -> Data:
    """A text with the values of the parameters and resources that it names."""
    return {"Fn::Sub": text}


def arn(service: str, what: str) -> Data:
    """The ARN of something in the account and region of the template."""
    return sub(f"arn:${{AWS::Partition}}:{service}:${{AWS::Region}}:${{AWS::AccountId}}:{what}")


def if_(condition: str, this: Any, other: Any = None) -> Data:
    """One of two by a condition; no value at all without an ``other``."""
    return {"Fn::If": [condition, this, ref("AWS::NoValue") if other is None else other]}
