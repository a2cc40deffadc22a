"""Secrets in texts: this one place decides what is refused, and what is masked wherever it is written or shown.

    masked("pip cannot fetch https://ci:hunter2@index.example/")     # ... https://ci:***@index.example/

Standard library only, because the queue's functions in the cloud and the bootstrap of a container use it too.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

MASK = "***"
NAMES_SAY_NOTHING = {"HyperParameters"}  # a pad_token there is no secret
# The patterns stay texts: compiling them takes 14 ms, for which a program that shows no secret need not wait.
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
# Each token has one of these in it. The pattern takes 7 ms to compile, and most texts hold none.
_IN_TOKENS = (
    *("AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox", "xapp-", "hf_", "sk-"),
    *("k_live_", "pypi-", "npm_", "AIza", "dop_v1_", "SG.", "eyJ", "-----BEGIN "),
)
# The text before the host of a URL. A colon that no port follows begins a password, whatever that holds.
_URL_USER = (
    r"(?i)(?P<before>(?<![a-z0-9])[a-z][a-z0-9+.-]{0,20}://[^\s/?#@:'\"<>]{0,200}:)"
    r"(?!\$\{\w+\}@)(?:[^\s/?#'\"<>]{1,500}(?=@(?:[\w-]+\.[\w.-]|localhost|\[))|(?!\d+(?:[/?#\s]|$))[^\s'\"<>]{1,500}(?=@))"
)
_WEB_USER = r"(?i)(?P<before>(?<![a-z])(?:[a-z]{2,4}\+)?https?://)(?!git@|\$\{\w+\}@)[^\s/?#@:'\"<>]{1,500}(?=@)"
_QUOTED_USER = (
    r"(?P<before>['\"][\w.+-]{0,100}:)[^\s/'\"@]{1,200}(?=@[\w.-]+['\"])"  # of a URL, quoted without its scheme
)
_WEB_HOOK = r"(?i)(?P<before>hooks\.slack\.com/(?:services|workflows|triggers)/|/api/webhooks/)[\w/-]+"
_QUERY = r"(?P<before>[?&;#](?P<name>[\w.-]{1,80})=)[^\s&;#'\"<>]+"
_HEADER = r"(?i)(?P<before>\b(?:Bearer|Basic)\s+)(?=[A-Za-z+/._~-]{0,90}\d)[A-Za-z0-9+=/._~-]{8,}"
_OPTION = r"(?P<before>(?<!\S)--?(?P<name>[A-Za-z][\w.-]{1,79})\s+)(?!-)(?P<value>[^\s'\"]+)"
# NAME=value, "NAME": "value", and NAME: value.
_FIELD = r"(?<![\w.-])(?P<name>[A-Za-z_][\w.-]{1,79})(?P<between>\\?['\"]?\s*(?:==?>?|:=?)\s*)"
_VALUE = r"(?P<quote>\\?['\"])(?:(?!(?P=quote)).)*(?P=quote)|[^\s,;&'\"<>(){}\[\]\\]+"
_ASSIGNED = (
    r"(?:^--?(?P<option>[A-Za-z][\w.-]*)|(?:^|[;&|\s])(?P<variable>[A-Z_][A-Z0-9_]*))=['\"]?(?P<value>[^\s'\"]+)"
)
_HARMLESS = r"(?i)arn:|\$|\*|(?:none|null|true|false)?\Z"  # the place of a secret, or nothing


def is_secret(name: str, value: str) -> bool:
    """Whether a value under that name looks like a secret itself, and not like the name of one."""
    if not value or value.startswith("arn:"):
        return False
    return holds_secret(value) or is_secret_name(name)


@functools.lru_cache(4096)
def is_secret_name(name: str) -> bool:
    """Whether a value of this name is most likely a secret."""
    return name.upper() != "PWD" and re.search(_NAMES, re.sub(_HUMP, "_", name)) is not None


@functools.lru_cache(4096)  # the requests of a run's jobs have most texts in common
def holds_secret(text: str) -> bool:
    """Whether a text holds what looks like a secret whatever is around it: a key, a token, a password in a URL."""
    return _without_values(text) != text


def masked(text: str) -> str:
    """The text with ``***`` in the place of every secret."""
    text = _without_values(text)
    if "=" in text or ":" in text:
        text = "".join(_without_fields(text))
    return re.sub(_OPTION, _hide_named, text) if "-" in text else text


def masked_data(value: Any, *, by_name: bool = True) -> Any:
    """Plain data with all texts in it masked, because of what they hold or of their names."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: _masked_item(value, key, by_name=by_name and key not in NAMES_SAY_NOTHING) for key in value}
    if isinstance(value, list | tuple):
        return [
            MASK if _follows_secret(value, i) else masked_data(each, by_name=by_name) for i, each in enumerate(value)
        ]
    return value


def secret_places(value: Any, name: str = "", *, by_name: bool = True) -> Iterator[str]:
    """Where plain data holds secrets: ``engine.env.DB_PASSWORD``, ``notify.0``; never what they are.

    With ``by_name`` a name such as ``password`` makes its value a secret; otherwise only the values count.
    """
    before = f"{name}." if name else ""
    if isinstance(value, str):
        if holds_secret(value):
            yield name
    elif isinstance(value, dict):
        for key, each in value.items():
            named = by_name and key not in NAMES_SAY_NOTHING
            if named and _is_named_secret(value, key):
                yield f"{before}{value['Key'] if _is_pair(value) else key}"
            else:
                yield from secret_places(each, f"{before}{masked(str(key))}", by_name=named)
            if isinstance(key, str) and holds_secret(key):
                yield f"{before}{masked(key)}"
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            if by_name and (_follows_secret(value, i) or _assigns_secret(each)):
                yield f"{before}{i}"
            else:
                yield from secret_places(each, f"{before}{i}", by_name=by_name)


def _masked_item(data: dict[Any, Any], key: Any, *, by_name: bool) -> Any:
    return MASK if by_name and _is_named_secret(data, key) else masked_data(data[key], by_name=by_name)


def _is_named_secret(data: dict[Any, Any], key: Any) -> bool:
    """Whether the value under a key is a secret by its name: the key, or that of one of the service's tags."""
    name, value = (data["Key"] if _is_pair(data) and key == "Value" else key), data[key]
    return isinstance(name, str) and isinstance(value, str) and bool(value) and _is_secret_by_name(name, value)


def _is_pair(data: dict[Any, Any]) -> bool:
    """Whether this is one of the service's tags, ``{"Key": ..., "Value": ...}``."""
    return set(data) == {"Key", "Value"} and isinstance(data["Key"], str)


def _is_secret_by_name(name: str, value: str) -> bool:
    return is_secret_name(name) and not re.match(_HARMLESS, value)


def _follows_secret(words: list[Any] | tuple[Any, ...], i: int) -> bool:
    """Whether a word of a command is the value of an option before it, such as ``--api-token``."""
    option, value = words[i - 1] if i else "", words[i]
    if not isinstance(option, str) or not isinstance(value, str) or value.startswith("-"):
        return False
    return option.startswith("-") and _is_secret_by_name(option.lstrip("-"), value)


def _assigns_secret(word: Any) -> bool:
    """Whether a word of a command gives a secret name a value: ``--api-token=...``, or ``export DB_PASSWORD=...``."""
    assigned = re.finditer(_ASSIGNED, word) if isinstance(word, str) else ()
    return any(_is_secret_by_name(each["option"] or each["variable"], each["value"]) for each in assigned)


def _without_values(text: str) -> str:
    """The text without what looks like a secret by itself."""
    if any(sign in text for sign in _IN_TOKENS):
        text = re.sub(_TOKENS, MASK, text)
    if "@" in text:
        text = re.sub(_QUOTED_USER, _hide, text)
    if "://" in text:
        text = re.sub(_URL_USER, _hide, text)
        text = re.sub(_WEB_USER, _hide, text)
        text = re.sub(_WEB_HOOK, _hide, text)
    if "?" in text or "&" in text:
        text = re.sub(_QUERY, _hide_query, text)
    return re.sub(_HEADER, _hide, text) if len(text.split()) > 1 else text


def _hide(match: re.Match[str]) -> str:
    return f"{match['before']}{MASK}"


def _hide_query(match: re.Match[str]) -> str:
    return _hide(match) if re.match(_QUERY_NAMES, match["name"]) or is_secret_name(match["name"]) else match[0]


def _hide_named(match: re.Match[str]) -> str:
    hidden = is_secret_name(match["name"]) and not re.match(_HARMLESS, match["value"])
    return _hide(match) if hidden else match[0]


def _without_fields(text: str) -> Iterator[str]:
    """The text, in pieces, without the values of secret names."""
    begin = at = 0
    while field := re.compile(_FIELD).search(text, at):
        at = field.end()
        value = re.compile(_VALUE).match(text, at) if is_secret_name(field["name"]) else None
        if value is not None and _is_value(field, value):
            quote = value["quote"] or ""
            yield f"{text[begin:at]}{quote}{MASK}{quote}"
            begin = at = value.end()
    yield text[begin:]


def _is_value(field: re.Match[str], value: re.Match[str]) -> bool:
    """Whether a secret name is followed by its value; after a bare colon, as sentences have it too, by no word."""
    text, bare = value[0], not value["quote"]
    if bare and ":" in field["between"] and (not re.search(r"\d", text) or field[0] == "secret:"):
        return False
    return text != field["name"] and not re.match(_HARMLESS, text.strip("\\'\""))
