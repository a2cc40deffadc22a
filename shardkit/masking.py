"""What of a text is a secret: one place says so, for all that is written or shown."""

from __future__ import annotations

import re

MASK = "***"
_PASSWORD = re.compile(
    r"(?P<before>(?<![a-z0-9])[a-z][a-z0-9+.-]{0,20}://[^\s/?#@:'\"<>]*:)[^\s'\"<>/]+(?=@)", re.IGNORECASE
)
_QUERY = re.compile(
    r"(?P<before>[?&](?:X-Amz-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|sig)=)[^\s&]+", re.IGNORECASE
)


def masked(text: str) -> str:
    """The text with every secret in it replaced by ``***``; a text that holds none as it is."""
    return _QUERY.sub(_hide, _PASSWORD.sub(_hide, text))


def _hide(found: re.Match[str]) -> str:
    return f"{found['before']}{MASK}"
