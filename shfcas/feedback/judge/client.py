"""Requests to a model at an endpoint of OpenAI's chat protocol."""

import os
import threading
from dataclasses import dataclass
from typing import Any

from shfcas.data.messages import Message
from shfcas.feedback.judge.config import JudgeConfig
from shfcas.feedback.judge.prompt import REPLY_SCHEMA
from shfcas.utils.errors import UserError
from shfcas.utils.http import Endpoint
from shfcas.utils.http_client import BadReply, Client, Refused

URL, KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"
OPENAI_URL = "https://api.openai.com/v1"
ACCOUNT = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
ABOUT_THE_REQUEST = (200, 400, 413, 422)  # 200: the reply is too large
LARGEST_REPLY = 2**21  # bytes; some JSON takes 25 times as much memory once it is parsed
_SCHEMA = {"name": "verdict", "strict": True, "schema": REPLY_SCHEMA}
RESPONSE_FORMATS: dict[str, dict[str, Any]] = {  # the strictest first
    "json_schema": {"response_format": {"type": "json_schema", "json_schema": _SCHEMA}},
    "json_object": {"response_format": {"type": "json_object"}},
    "text": {},
}
UNKNOWN_FORMAT = (400, 422)  # how endpoints refuse a format that they do not know


class RequestRefused(Exception):
    """A request that the endpoint refuses, while it may accept others, such as those with shorter texts."""


@dataclass(frozen=True)
class Completion:
    """The reply of a model.

    Attributes:
        text: the reply; empty if there is none.
        thoughts: what the endpoint separated from the reply as reasoning.
        finish_reason: why the model stopped, as the endpoint names it.
        input_tokens: tokens sent; None if the endpoint does not count them.
        output_tokens: tokens received.
    """

    text: str
    thoughts: str
    finish_reason: str
    input_tokens: int | None
    output_tokens: int | None


class JudgeClient:
    """A model at an endpoint; may be used by several threads.

    Args:
        settings: the model, and how to reach it.

    Attributes:
        settings: see there.
        host: host and port of the endpoint.

    Raises:
        UserError: an endpoint that needs a key has none, or the key or the address is not one.
        MissingExtra: the package `httpx2` is not installed.
    """

    def __init__(self, settings: JudgeConfig) -> None:
        url = settings.base_url or os.environ.get(URL)
        self.settings = settings
        self._endpoint = Endpoint(url or OPENAI_URL, "judge.base_url" if settings.base_url or not url else URL, KEY)
        if not url and not self._endpoint.key:
            raise UserError(f"set {KEY} in the environment, or judge.base_url to a server of your own")
        self.host = self._endpoint.host
        self._formats = tuple(RESPONSE_FORMATS)  # those that the endpoint may take; one after its first reply
        self._client = Client(
            self._endpoint,
            timeout=settings.timeout,
            max_retries=settings.max_retries,
            retry_wait=settings.retry_wait,
            concurrency=settings.concurrency,
            max_reply_bytes=LARGEST_REPLY,
            headers={header: os.environ[name] for header, name in ACCOUNT.items() if os.environ.get(name)},
        )

    @property
    def retries(self) -> int:
        """Number of attempts after a failed one so far."""
        return self._client.retries

    def body(self, messages: list[Message]) -> dict[str, Any]:
        """Returns the JSON of a request; with `response_format: auto` without the format, which `complete` adds."""
        s = self.settings
        body: dict[str, Any] = {"model": s.model, "messages": messages, s.max_tokens_name: s.max_tokens}
        if s.temperature is not None:
            body["temperature"] = s.temperature
        return body | RESPONSE_FORMATS.get(s.response_format, {})

    def complete(self, body: dict[str, Any], stop: threading.Event) -> Completion:
        """Sends a request, again where that may help.

        Args:
            body: the request.
            stop: ends the request before its next attempt once it is set.

        Raises:
            RequestRefused: the endpoint refuses this request.
            UserError: the endpoint refuses every request: a wrong key, model or address, or no credit.
            GaveUp, Stopped: see `shfcas.utils.http_client.Client.request`.
        """
        formats = self._formats if self.settings.response_format == "auto" else ("text",)
        for name in formats:
            try:
                completion = self._send(body | RESPONSE_FORMATS[name], stop)
            except Refused as error:
                refused = error
                if error.failure.status not in UNKNOWN_FORMAT:
                    break
            else:
                self._formats = (name,)
                return completion
        raise self._meaning(refused)

    def _send(self, body: dict[str, Any], stop: threading.Event) -> Completion:
        return self._client.request("POST", f"{self._endpoint.url}/chat/completions", body, self._read, stop)

    def hide(self, text: str) -> str:
        """Replaces the key in a text by three asterisks, for texts that were read from inside a reply."""
        return self._endpoint.key.hide(text)

    def cancel(self) -> None:
        """Ends all requests under way; their callers get `Stopped`."""
        self._client.cancel()

    def _read(self, reply: Any) -> Completion:
        """Returns the completion in a reply that ought to be one, without the key."""
        try:
            choice = reply["choices"][0]
            message, usage = choice["message"], reply.get("usage") or {}
            text, thoughts = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
            counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            finish_reason = str(choice.get("finish_reason"))
        except (LookupError, TypeError, AttributeError):
            error = reply.get("error") if isinstance(reply, dict) else None
            said = self._endpoint.quote(error.get("message") if isinstance(error, dict) else error) if error else ""
            raise BadReply("the reply is not a chat completion" + (f" ({said})" if said else "")) from None
        known = [n if type(n) is int and n >= 0 else None for n in counts]
        return Completion(self.hide(_text(text)), self.hide(_text(thoughts)), finish_reason, *known)

    def _meaning(self, error: Refused) -> Exception:
        """Converts a refusal to an error of the one request, or of all."""
        failure = error.failure
        if failure.status in ABOUT_THE_REQUEST:
            return RequestRefused(str(error))
        if failure.code == "insufficient_quota":
            return UserError(f"{self.host} reports that the credit is used up; top it up")
        if failure.status == 404:
            return UserError(f"{error}; check judge.model ({self.settings.model!r}) and judge.base_url")
        return error


def _text(content: Any) -> str:
    """Returns the text of a message's content: a string, or a list of parts, of which some may be thoughts."""
    if isinstance(content, list):
        return "".join(map(_part, content))
    return content if isinstance(content, str) else ""


def _part(part: Any) -> str:
    if isinstance(part, dict) and part.get("type", "text") in ("text", "output_text"):
        part = part.get("text")
    return part if isinstance(part, str) else ""
