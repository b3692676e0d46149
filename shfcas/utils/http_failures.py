"""Failures of HTTP requests: their description, and whether another attempt may succeed."""

import json
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shfcas.utils.http import Endpoint, is_temporary, retry_after


@dataclass(frozen=True)
class Failure:
    """An attempt without a usable reply.

    Attributes:
        reason: what happened, on one line without the key.
        temporary: whether another attempt may succeed.
        status: the HTTP status; None without a reply.
        code: the error code in the reply, such as `insufficient_quota`.
        wait: seconds that the endpoint asks to wait; None if it does not ask.
    """

    reason: str
    temporary: bool = True
    status: int | None = None
    code: str | None = None
    wait: float | None = None


def no_connection(endpoint: Endpoint, error: Exception, route: str = "") -> Failure:
    """Returns the failure of a request that a network error ended.

    Args:
        endpoint: where it was sent.
        error: the error, with its causes.
        route: how it was sent, such as " through a proxy".
    """
    reason = ""
    for cause in _causes(error):  # the deepest one with a message is the most precise
        if isinstance(cause, ssl.SSLCertVerificationError):
            remedy = "set SSL_CERT_FILE to a file with the certificate of its authority"
            said = endpoint.quote(cause.verify_message)
            return Failure(f"has a certificate that is not trusted ({said}); {remedy}", temporary=False)
        message: object = getattr(cause, "strerror", None) or cause
        if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError | socket.gaierror) and cause.errno:
            message = os.strerror(cause.errno)  # asyncio replaces the system's message
        reason = endpoint.quote(message) or reason
    return Failure(f"no connection{route} ({reason or type(error).__name__})")


def bad_status(endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    """Returns the failure of a request whose reply has another status than success.

    Args:
        endpoint: where it was sent.
        status: the HTTP status.
        headers: those of the reply, by names in lower case.
        body: the reply, or its beginning.
    """
    if status in (401, 403):  # the message of such a reply often quotes a part of the key
        variable = endpoint.key_variable
        if not endpoint.key:
            return Failure(f"asks for a key ({status}); set {variable}", False, status)
        return Failure(f"refuses the key ({status}); check {variable}", False, status)
    if 300 <= status < 400:
        target = endpoint.quote(headers.get("location", "").partition("?")[0]) or "no address"
        remedy = f"set {endpoint.setting} to the new address"
        return Failure(f"redirects to {target} ({status}), which is not followed; {remedy}", False, status)
    message, code = _message_and_code(body)
    said = endpoint.quote(message) or "no message"
    if is_temporary(status) and code != "insufficient_quota":
        return Failure(f"status {status} ({said})", True, status, wait=retry_after(headers))
    code = None if code is None else endpoint.quote(code)
    return Failure(f"refuses the request ({status}: {said})", False, status, code)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and the errors that led to it."""
    while error is not None:
        yield error
        cause = error.__cause__ or error.__context__
        error = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause


def _message_and_code(body: bytes) -> tuple[str, Any]:
    """Returns the message and the code in an error's body; the whole body if it does not follow the protocol."""
    try:
        value = json.loads(body)
        inner = value.get("error", value)
        if isinstance(inner, dict):
            return str(inner.get("message") or inner.get("detail") or value), inner.get("code")
        return str(inner), None
    except (ValueError, RecursionError, AttributeError):
        return body.decode(errors="replace"), None
