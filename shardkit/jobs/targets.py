"""Who gets a notice: an SNS topic, a Slack channel, any webhook.

    arn:aws:sns:eu-west-1:111122223333:jobs     the topic's subscribers: e-mail, a queue, a function
    slack:PLACE                                 an incoming webhook of Slack
    webhook:PLACE                               an HTTPS server that gets the notice as JSON

PLACE says where the URL is kept: ``env:NAME`` (a variable of the process that sends), ``ssm:/PARAMETER`` (Parameter
Store) or ``secret:NAME-OR-ARN`` (Secrets Manager; the URL, or a JSON object with a ``url``). Anybody who knows such a
URL can post to it, so no table, log or message has the URL itself.
"""

from __future__ import annotations

import json
import os
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TookTooLong
from typing import TYPE_CHECKING, Any

import botocore.exceptions
from botocore.config import Config

from shardkit.jobs.calls import THROTTLED
from shardkit.jobs.errors import JobError
from shardkit.jobs.message import slack_of, subject_of, text_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardkit.jobs.message import Notice

TIMEOUT_S = 10.0
# The kinds of webhooks, and what is sent to each as JSON; a further kind is a line here.
HOOKS: dict[str, Callable[[Notice], Any]] = {"slack": slack_of, "webhook": dict}
_KINDS = "|".join(HOOKS)
_TOPIC = re.compile(r"arn:aws[a-z-]*:sns:(?P<region>[a-z0-9-]+):[0-9]{12}:[A-Za-z0-9_-]{1,256}(?P<fifo>\.fifo)?\Z")
_HOOK = re.compile(rf"(?P<kind>{_KINDS}):(?P<where>env|ssm|secret):(?P<name>[\w/.:@+=!-]{{1,2048}})\Z", re.ASCII)
_LIKE_SLACK = re.compile(r"hooks\.slack|(?:^|/)T[A-Z0-9]{6,}/B[A-Z0-9]{6,}/", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_SLACK_ERROR = re.compile(rb"[a-z_]{2,40}\Z")
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_MACHINES = ("sqs", "lambda", "http", "https", "firehose")
_HINT = (
    f"Give the ARN of an SNS topic, or {' or '.join(f'{kind}:PLACE' for kind in HOOKS)}, where PLACE says where the "
    "URL is kept: env:NAME, ssm:/PARAMETER or secret:NAME."
)


class Undelivered(Exception):
    """A target has not got the notice; the text says why, without any URL.

    Args:
        why: In words.
        down: Whether another notice would fail now as well.
        wait_s: How long the target asked not to be called; 0 if it did not.
    """

    def __init__(self, why: str, *, down: bool = True, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.down, self.wait_s = down, wait_s


def check_target(text: str) -> None:
    """Check whether notices can be sent to a target, judging by its name only.

    Raises:
        JobError: It is not a target, or is a URL, which the table of jobs would show to everybody.
    """
    if not isinstance(text, str) or "://" in text or _LIKE_SLACK.search(text):
        raise JobError(
            f"Notices cannot be sent to {_shown(text)}: a URL is a secret, and the table of jobs would show it.",
            hint="Keep it in a variable, in Parameter Store or in Secrets Manager, and say where: "
            "slack:env:NAME, webhook:ssm:/PARAMETER, slack:secret:NAME.",
        )
    hook = _HOOK.match(text)
    usable = _TOPIC.match(text) or (hook and (hook["where"] != "env" or _VARIABLE.match(hook["name"])))
    if not usable:
        raise JobError(f"Notices cannot be sent to {_shown(text)}.", hint=_HINT)


def _shown(text: object) -> str:
    """Text that is not a target, without what may be a secret."""
    if not isinstance(text, str):
        return repr(text)
    kind = re.match(rf"(?:{_KINDS}):", text)
    rest = text[kind.end() :] if kind else text
    if url := re.match(r"[A-Za-z][\w+.-]*://(?:[^/?#@]*@)?([\w.-]{1,80})", rest):
        return f"{kind[0] if kind else ''}{rest[: rest.index('://')]}://{url[1]}/..."
    if re.match(r"[\w.+-]{1,64}@[\w.-]{1,80}\Z", rest) or text.startswith("arn:"):
        return repr(text)
    return repr(f"{kind[0] if kind else ''}{rest[:6]}{'...' if len(rest) > 6 else ''}")


class Sender:
    """Sends notices; looks up each URL once.

    Args:
        session: The boto3 session; by default one is made when it is needed.
        timeout_s: How long one message may take, from the look for its URL to the answer.
    """

    def __init__(self, session: Any = None, *, timeout_s: float = TIMEOUT_S) -> None:
        self._session, self._timeout_s = session, timeout_s
        self._urls: dict[str, str] = {}
        self._clients: dict[tuple[str, str], Any] = {}

    def region(self) -> str:
        """The region of the session; empty if it has none."""
        return str(self._boto().region_name or "")

    def send(self, target: str, notice: Notice) -> None:
        """Send a notice to one target, within the time limit.

        Raises:
            Undelivered: The target has not got it, or did not say so in time.
        """
        try:
            check_target(target)
        except JobError as error:
            raise Undelivered(str(error)) from None
        work = self._publish if _TOPIC.match(target) else self._post
        # A server may keep a connection alive with a byte now and then, and a name may take long to look up: the only
        # way to bound it all is a thread that is left behind.
        answer: Future[None] = Future()
        threading.Thread(target=_run, args=(answer, lambda: work(target, notice)), daemon=True).start()
        try:
            answer.result(self._timeout_s)
        except TookTooLong:
            raise _too_late(target, self._timeout_s) from None

    def _publish(self, topic: str, notice: Notice) -> None:
        parts = _TOPIC.match(topic)
        assert parts  # noqa: S101  checked before
        text, data = text_of(notice), json.dumps(notice, ensure_ascii=False)
        message = {"default": text, "email": text, "sms": subject_of(notice)} | dict.fromkeys(_MACHINES, data)
        facts = {name: notice[name] for name in ("about", "status", "cause", "owner", "run", "job_id") if notice[name]}
        arguments: dict[str, Any] = {
            "TopicArn": topic,
            "Subject": subject_of(notice),
            "Message": json.dumps(message, ensure_ascii=False),
            "MessageStructure": "json",
            "MessageAttributes": {name: {"DataType": "String", "StringValue": text} for name, text in facts.items()},
        }
        if parts["fifo"]:
            arguments["MessageGroupId"] = notice["job_id"]
            arguments["MessageDeduplicationId"] = f"{notice['job_id']}-{notice['ended_at']}".replace("+00:00", "Z")
        self._call(topic, lambda: self._client("sns", parts["region"]).publish(**arguments))

    def _post(self, target: str, notice: Notice) -> None:
        kind = target.partition(":")[0]
        url = self._url(target)
        data = json.dumps(HOOKS[kind](notice)).encode()
        _post(target, url, data, self._timeout_s)

    def _url(self, target: str) -> str:
        """The URL of a target, from the place where it is kept."""
        if target not in self._urls:
            _, where, name = target.split(":", 2)
            url = self._kept(target, where, name).strip()
            parts = _split(url)
            if not parts or not (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)):
                raise Undelivered(f"What is kept for {target} is no https URL.")
            self._urls[target] = url
        return self._urls[target]

    def _kept(self, target: str, where: str, name: str) -> str:
        if where == "env":
            if not os.environ.get(name):
                raise Undelivered(f"{target}: this process has no variable {name}.")
            return os.environ[name]
        if where == "ssm":
            get = lambda: self._client("ssm", _region_of(name)).get_parameter(Name=name, WithDecryption=True)  # noqa: E731
            return str(self._call(target, get)["Parameter"]["Value"])
        get = lambda: self._client("secretsmanager", _region_of(name)).get_secret_value(SecretId=name)  # noqa: E731
        return _url_in(self._call(target, get).get("SecretString") or "")

    def _call(self, target: str, call: Callable[[], Any]) -> Any:
        """Call AWS; raises its errors in words."""
        try:
            return call()
        except botocore.exceptions.ClientError as error:
            details = error.response.get("Error") or {}
            code = details.get("Code", "")
            wait_s = 60.0 if code in THROTTLED else 0.0
            raise Undelivered(f"{target}: {code}: {details.get('Message', '')[:300]}", wait_s=wait_s) from None
        except botocore.exceptions.BotoCoreError as error:
            raise Undelivered(f"{target}: {str(error)[:300]}") from None

    def _client(self, service: str, region: str) -> Any:
        if (service, region) not in self._clients:
            config = Config(
                connect_timeout=self._timeout_s / 2, read_timeout=self._timeout_s / 2, retries={"total_max_attempts": 2}
            )
            self._clients[service, region] = self._boto().client(service, region_name=region or None, config=config)
        return self._clients[service, region]

    def _boto(self) -> Any:
        if self._session is None:
            import boto3

            self._session = boto3.Session()
        return self._session


def _run(answer: Future[None], work: Callable[[], None]) -> None:
    try:
        work()
    except Undelivered as error:
        answer.set_exception(error)
    except Exception as error:  # noqa: BLE001  no error may hold up other notices, or show a URL
        answer.set_exception(Undelivered(f"It could not be sent: {type(error).__name__}.", down=False))
    else:
        answer.set_result(None)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none: the notice would go to a place that nobody has named."""


def _post(target: str, url: str, data: bytes, timeout_s: float) -> None:
    """Post JSON to a URL."""
    headers = {"Content-Type": "application/json", "User-Agent": "shardkit"}
    request = urllib.request.Request(url, data=data, headers=headers, method="POST")  # noqa: S310  checked by _url()
    near = urllib.parse.urlsplit(url).hostname in _LOOPBACK
    opener = urllib.request.build_opener(_NoRedirects, *([urllib.request.ProxyHandler({})] if near else []))
    try:
        opener.open(request, timeout=timeout_s).close()
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(100) if target.startswith("slack:") else b""
        more = f" {said.decode()}" if _SLACK_ERROR.match(said) else ""
        # 4xx is about this message or this URL; if it is about the message, another one may get through.
        raise Undelivered(
            f"{target} answered {error.code}{more}.",
            down=error.code not in {400, 413, 422},
            wait_s=_retry_after(error) if error.code in {429, 503} else 0.0,
        ) from None
    except OSError as error:  # its text may have the URL
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise _too_late(target, timeout_s) from None
        why = (isinstance(reason, OSError) and reason.strerror) or type(reason).__name__
        raise Undelivered(f"{target} cannot be reached: {why}.") from None


def _too_late(target: str, timeout_s: float) -> Undelivered:
    return Undelivered(f"{target} did not answer within {timeout_s:g} s.")


def _retry_after(error: urllib.error.HTTPError) -> float:
    text = (error.headers.get("Retry-After") or "").strip()
    return min(max(float(text), 1.0), 3600.0) if text.isdigit() else 60.0


def _split(url: str) -> urllib.parse.SplitResult | None:
    try:
        parts = urllib.parse.urlsplit(url)
        return parts if parts.hostname and url.isascii() and not re.search(r"[\x00-\x20\x7f]", url) else None
    except ValueError:
        return None


def _url_in(secret: str) -> str:
    """The URL in a secret: its text, or ``url`` of a JSON object."""
    try:
        kept = json.loads(secret)
    except ValueError:
        return secret
    return str(kept.get("url", "")) if isinstance(kept, dict) else secret


def _region_of(name: str) -> str:
    """The region of an ARN; empty for a plain name."""
    return name.split(":")[3] if name.startswith("arn:") and name.count(":") > 3 else ""
