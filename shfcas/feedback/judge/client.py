"""Requests to an endpoint of OpenAI's chat protocol: which failures are tried again, which end the whole step."""

import json
import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from shfcas.data.chat import Message
from shfcas.feedback.judge.config import JudgeConfig
from shfcas.feedback.judge.prompt import REPLY_SCHEMA
from shfcas.utils.errors import MissingExtra, UserError
from shfcas.utils.http import (
    LONGEST_RETRY_AFTER,
    WORTH_ANOTHER,
    check_base_url,
    hidden,
    is_unencrypted,
    pause,
    retry_after,
    words,
)

logger = logging.getLogger(__name__)

KEY = "OPENAI_API_KEY"
OPENAI_URL = "https://api.openai.com/v1"
ABOUT_THE_REQUEST = (400, 413, 422)


class RequestFailed(Exception):
    """A request that got no reply, after all attempts."""


class RequestRefused(Exception):
    """A request that the endpoint says is wrong; the others may be right, such as those with shorter texts."""


class EndpointError(UserError):
    """No request has a chance: a wrong key, model or address, or no credit."""


class Stopped(Exception):
    """Somebody else has ended the step while this request waited for its turn."""


@dataclass(frozen=True)
class Completion:
    """What a model said.

    Attributes:
        text: its reply; empty if it gave none.
        finish_reason: why it stopped, in the endpoint's words.
        input_tokens: tokens sent; None where the endpoint does not say.
        output_tokens: tokens received.
    """

    text: str
    finish_reason: str
    input_tokens: int | None
    output_tokens: int | None


@dataclass(frozen=True)
class _Trouble:
    """A failed attempt: what to raise if it was the last one, and when another is welcome."""

    error: Exception
    again: bool
    wait: float | None = None


class JudgeClient:
    """A model at an endpoint; may be used by several threads.

    The key comes from the environment and appears neither in errors nor in logs nor in what is returned.

    Args:
        settings: the model, and how to reach it.

    Raises:
        UserError: there is no key for an endpoint that needs one, or the key or address cannot be one.
        MissingExtra: the package `openai` is not installed.
    """

    def __init__(self, settings: JudgeConfig) -> None:
        try:
            import openai
        except ModuleNotFoundError:
            raise MissingExtra("openai", "judge") from None
        self.settings, self.retries = settings, 0
        url = settings.base_url or os.environ.get("OPENAI_BASE_URL")
        if url and not settings.base_url:
            check_base_url(url, "OPENAI_BASE_URL")
        self._key = os.environ.get(KEY, "").strip()
        if not self._key and not url:
            raise UserError(f"set {KEY} in the environment, or judge.base_url for a server of your own")
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(f"{KEY} holds characters that no key has; set it again")
        self.url = url or OPENAI_URL
        parts = urlsplit(self.url)
        self.host = parts.netloc
        if self._key and is_unencrypted(parts):
            logger.warning("%s and all texts go to %s unencrypted; use https, or a tunnel", KEY, self.host)
        self._openai = openai
        self._client = openai.OpenAI(
            api_key=self._key or "none",
            base_url=self.url,
            timeout=settings.timeout,
            max_retries=0,
            # Texts and key go to the endpoint that was named and to no other.
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )
        self._guard = threading.Lock()
        self._not_before = 0.0

    def body(self, messages: list[Message]) -> dict[str, Any]:
        """All that a request says to the endpoint."""
        s = self.settings
        body: dict[str, Any] = {"model": s.model, "messages": messages, s.max_tokens_name: s.max_tokens}
        if s.temperature is not None:
            body["temperature"] = s.temperature
        if s.response_format == "json_object":
            body["response_format"] = {"type": "json_object"}
        elif s.response_format == "json_schema":
            schema = {"name": "verdict", "strict": True, "schema": REPLY_SCHEMA}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def complete(self, body: dict[str, Any], stop: threading.Event) -> Completion:
        """Sends a request, again where that may help; a busy endpoint is left alone by all threads as long as it asks.

        Args:
            body: the request.
            stop: ends all waiting once it is set.

        Raises:
            RequestFailed, RequestRefused, EndpointError, Stopped: see there.
        """
        attempt = 0
        while True:
            while (left := self._not_before - time.monotonic()) > 0:
                _sleep(left, stop)
            _sleep(0, stop)
            result = self._attempt(body)
            if isinstance(result, Completion):
                return result
            if not result.again or attempt == self.settings.max_retries:
                raise result.error
            with self._guard:
                self.retries += 1
                if result.wait:
                    self._not_before = max(self._not_before, time.monotonic() + result.wait)
            if not result.wait:
                _sleep(pause(self.settings.retry_wait, attempt), stop)
            attempt += 1

    def _attempt(self, body: dict[str, Any]) -> Completion | _Trouble:
        """One request. Errors of the library are turned into words here, since they carry the key in their requests."""
        try:
            raw = self._client.chat.completions.with_raw_response.create(**body)
            return self._read(raw.content)
        except self._openai.APITimeoutError:
            return _Trouble(RequestFailed(f"no reply within {self.settings.timeout:g} seconds"), again=True)
        except self._openai.APIConnectionError as error:
            return _Trouble(RequestFailed(f"no connection ({self._words(error.__cause__ or error)})"), again=True)
        except self._openai.APIStatusError as error:
            return self._status(error)
        except self._openai.OpenAIError as error:
            return _Trouble(RequestFailed(self._words(error)), again=False)

    def _read(self, content: bytes) -> Completion | _Trouble:
        """The reply in a body that ought to be a chat completion."""
        try:
            value = json.loads(content)
            choice = value["choices"][0]
            text, usage = choice["message"].get("content"), value.get("usage") or {}
            counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            finish_reason = str(choice.get("finish_reason"))
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return _Trouble(RequestFailed("the endpoint's reply is not a chat completion"), again=True)
        known = [n if type(n) is int and n >= 0 else None for n in counts]
        return Completion(hidden(text, self._key) if isinstance(text, str) else "", finish_reason, *known)

    def _status(self, error: Any) -> _Trouble:
        status, body = error.status_code, error.body
        said = self._words(body["message"] if isinstance(body, dict) and body.get("message") else error.message)
        if status == 401 or status == 403:
            # What is said here often quotes the key.
            return _Trouble(EndpointError(f"{self.host} refuses the key ({status}); check {KEY}"), again=False)
        if status in ABOUT_THE_REQUEST:
            return _Trouble(RequestRefused(f"{self.host} refuses the request ({status}: {said})"), again=False)
        if status == 429 and error.code == "insufficient_quota":
            return _Trouble(EndpointError(f"{self.host} says that the credit is used up; top it up"), again=False)
        if status in WORTH_ANOTHER or status >= 500:
            wait = retry_after(error.response.headers)
            if wait is not None and wait > LONGEST_RETRY_AFTER:
                message = f"{self.host} is to be left alone for {wait:.0f} seconds ({status}); start again then"
                return _Trouble(EndpointError(message), again=False)
            return _Trouble(RequestFailed(f"status {status}: {said}"), again=True, wait=wait)
        message = (
            f"{self.host} knows no model {self.settings.model!r}, or judge.base_url is not its address (404: {said})"
            if status == 404
            else f"{self.host} cannot be used ({status}: {said}); check judge.base_url and judge.model"
        )
        return _Trouble(EndpointError(message), again=False)

    def _words(self, said: object) -> str:
        return words(said, self._key)


def _sleep(seconds: float, stop: threading.Event) -> None:
    if stop.wait(seconds):
        raise Stopped
