"""Makes requests to a served engine, signed or not, that no SDK would make."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials


def signed(
    url: str, body: bytes, headers: dict[str, str], *, key: str = "any", secret: str = "any", service: str = "sagemaker"
) -> dict[str, str]:
    """The headers that sign a request."""
    about = {name: value for name, value in headers.items() if name.lower() != "host"}
    request = AWSRequest("POST", f"{url}/", headers=about, data=body)
    if "Host" in headers:
        request.headers["Host"] = headers["Host"]
    SigV4Auth(Credentials(key, secret), service, "us-east-1").add_auth(request)
    return dict(request.headers.items())


def send(
    url: str, body: bytes | None, headers: dict[str, str], *, method: str = "POST", chunked: bool = False
) -> tuple[int, dict[str, Any]]:
    """Send a request as it is; returns the status and the answer."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    content = iter([body]) if chunked and body is not None else body
    connection.request(method, "/", content, headers, encode_chunked=chunked)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if text else {}
