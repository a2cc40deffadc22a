"""What of a text is a secret: one place says so, for all that is refused, and for all that is written or shown.

    masked("pip cannot fetch https://ci:hunter2@index.example/")     # ... https://ci:***@index.example/

Standard library only: the queue's functions in the cloud and the bootstrap of a container use it too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

MASK = "***"
# The patterns stay texts: to compile them takes 14 ms, which a program that shows no secret need not wait for.
_NAMES = (
    r"(?i)(?:^|_)ACCESS_KEY_ID$|(?:^|_)(?:DB|FTP|MAIL|MYSQL|PG|REDIS|ROOT|SMTP|USER)_?PASS$"
    r"|(?:PASSWORD|PASSWD|PASSPHRASE|APIKEY|(?:API|AUTH|ACCESS|BEARER|REFRESH)TOKEN"
    r"|(?:^|_)(?:PWD|TOKEN|SECRETS?|CREDENTIALS?|AUTHORIZATION|(?:API|ACCESS|PRIVATE|AUTH|SAS)_?KEY))"
    # ... unless the name is of a place or of a number
    r"(?!\w*_(?:ARN|COUNT|FILE|ID|LENGTH|LIMIT|NAME|PATH|TTL|TYPE|URI|URL)$)(?=\d*(?:_|$))"
)
_HUMP = r"(?<=[a-z0-9])(?=[A-Z])|[.-]+"  # dbPassword and db-password are db_password
_QUERY_NAMES = r"(?i)(?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|sig|signature|key|code)$"

_TOKENS = (
    r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"  # an AWS access key
    r"|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{30,}|\bglpat-[\w-]{20,}"
    r"|\bxox[abeoprs]-[A-Za-z0-9-]{10,}|\bxapp-[A-Za-z0-9-]{10,}|\bhf_[A-Za-z0-9]{30,}"
    r"|\bsk-(?=[\w-]{0,90}[0-9])(?=[\w-]{0,90}[A-Z])[\w-]{24,}|\b[rs]k_live_[A-Za-z0-9]{20,}"
    r"|\bpypi-[A-Za-z0-9_-]{30,}|\bnpm_[A-Za-z0-9]{30,}|\bAIza[\w-]{35}|\bdop_v1_[a-f0-9]{60,}"
    r"|\bSG\.[\w-]{16,99}\.[\w-]{16,}"
    r"|\beyJ[\w-]{10,2000}\.eyJ[\w-]{10,}(?:\.[\w-]*)?"  # a JSON web token
    r"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY(?s:.*?)(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)"
)
# What stands before the host of a URL. A colon that has no port after it begins a password, whatever is in that.
_URL_USER = (
    r"(?i)(?P<before>(?<![a-z0-9])[a-z][a-z0-9+.-]{0,20}://[^\s/?#@:'\"<>]{0,200}:)"
    r"(?!\$\{\w+\}@)(?:[^\s/?#'\"<>]{1,500}(?=@(?:[\w-]+\.[\w.-]|localhost|\[))|(?!\d+(?:[/?#\s]|$))[^\s'\"<>]{1,500}(?=@))"
)
_WEB_USER = r"(?i)(?P<before>(?<![a-z])(?:[a-z]{2,4}\+)?https?://)(?!git@|\$\{\w+\}@)[^\s/?#@:'\"<>]{1,500}(?=@)"
_WEB_HOOK = r"(?i)(?P<before>hooks\.slack\.com/(?:services|workflows|triggers)/|/api/webhooks/)[\w/-]+"
_QUERY = r"(?P<before>[?&;#](?P<name>[\w.-]{1,80})=)[^\s&;#'\"<>]+"
_HEADER = r"(?i)(?P<before>\b(?:Bearer|Basic)\s+)(?=[A-Za-z+/._~-]{0,90}\d)[A-Za-z0-9+=/._~-]{8,}"
_OPTION = r"(?P<before>(?<!\S)--?(?P<name>[A-Za-z][\w.-]{1,79})\s+)(?!-)(?P<value>[^\s'\"]+)"
# NAME=value, "NAME": "value", and NAME: value.
_FIELD = r"(?<![\w.-])(?P<name>[A-Za-z_][\w.-]{1,79})(?P<between>\\?['\"]?\s*(?:==?>?|:=?)\s*)"
_VALUE = r"(?P<quote>\\?['\"])(?:(?!(?P=quote)).)*(?P=quote)|[^\s,;&'\"<>(){}\[\]\\]+"
_HARMLESS = r"(?i)arn:|\$|\*|(?:none|null|true|false)?\Z"  # the place of a secret, or nothing


def is_secret(name: str, value: str) -> bool:
    """Whether a value under that name looks like a secret itself, and not like the name of one."""
    if not value or value.startswith("arn:"):
        return False
    return holds_secret(value) or is_secret_name(name)


def is_secret_name(name: str) -> bool:
    """Whether what has this name is a secret, most likely."""
    return name.upper() != "PWD" and re.search(_NAMES, re.sub(_HUMP, "_", name)) is not None


def holds_secret(text: str) -> bool:
    """Whether a text holds what looks like a secret whatever is around it: a key, a token, a password in a URL."""
    return _without_values(text) != text


def masked(text: str) -> str:
    """The text with every secret in it replaced by ``***``; a text that holds none as it is."""
    text = _without_values(text)
    if "=" in text or ":" in text:
        text = "".join(_without_fields(text))
    return re.sub(_OPTION, _hide_named, text) if "-" in text else text


def masked_data(value: Any) -> Any:
    """Plain data with every text in it masked, by what it holds and by the name that it has."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: MASK if _is_named_secret(key, each) else masked_data(each) for key, each in value.items()} | _pair(
            value
        )
    return [masked_data(each) for each in value] if isinstance(value, list | tuple) else value


def secret_places(value: Any, name: str = "") -> Iterator[str]:
    """Where plain data holds secrets: ``engine.env.DB_URL_USER``, ``notify.0``; never what they are."""
    last = name.rpartition(".")[2]
    if isinstance(value, str):
        if is_secret(last, value):
            yield name
    elif isinstance(value, dict):
        if _pair(value):
            yield f"{name}.{value['Key']}"
        else:
            for key, each in value.items():
                yield from secret_places(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            yield from secret_places(each, f"{name}.{i}" if name else str(i))


def _is_named_secret(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, str) and is_secret(name, value) and not holds_secret(value)


def _pair(value: dict[Any, Any]) -> dict[str, str]:
    """What takes the place of a secret value in one of the service's tags, ``{"Key": ..., "Value": ...}``."""
    key, content = value.get("Key"), value.get("Value")
    known = isinstance(key, str) and isinstance(content, str) and len(value) == 2
    return {"Value": MASK} if known and is_secret(str(key), str(content)) else {}


def _without_values(text: str) -> str:
    """The text without what is known as a secret by its look."""
    text = re.sub(_TOKENS, MASK, text)
    if "://" in text:
        text = re.sub(_URL_USER, _hide, text)
        text = re.sub(_WEB_USER, _hide, text)
        text = re.sub(_WEB_HOOK, _hide, text)
    if "?" in text or "&" in text:
        text = re.sub(_QUERY, _hide_query, text)
    return re.sub(_HEADER, _hide, text)


def _hide(found: re.Match[str]) -> str:
    return f"{found['before']}{MASK}"


def _hide_query(found: re.Match[str]) -> str:
    return _hide(found) if re.match(_QUERY_NAMES, found["name"]) or is_secret_name(found["name"]) else found[0]


def _hide_named(found: re.Match[str]) -> str:
    hidden = is_secret_name(found["name"]) and not re.match(_HARMLESS, found["value"])
    return _hide(found) if hidden else found[0]


def _without_fields(text: str) -> Iterator[str]:
    """The text, in pieces, without the values of secret names."""
    told = at = 0
    while field := re.compile(_FIELD).search(text, at):
        at = field.end()
        value = re.compile(_VALUE).match(text, at) if is_secret_name(field["name"]) else None
        if value is not None and _is_value(field, value):
            quote = value["quote"] or ""
            yield f"{text[told:at]}{quote}{MASK}{quote}"
            told = at = value.end()
    yield text[told:]


def _is_value(field: re.Match[str], value: re.Match[str]) -> bool:
    """Whether a secret name is followed by its value; after a bare colon, as sentences have it too, by no word."""
    text, bare = value[0], not value["quote"]
    if bare and ":" in field["between"] and (not re.search(r"\d", text) or field[0] == "secret:"):
        return False
    return text != field["name"] and not re.match(_HARMLESS, text.strip("\\'\""))
