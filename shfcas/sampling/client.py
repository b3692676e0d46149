"""Requests to a completions server: which failures are tried again, which end the sampling."""

import http.client
import json
import logging
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from shfcas.sampling.config import ServerConfig
from shfcas.utils.errors import UserError
from shfcas.utils.http import (
    LONGEST_RETRY_AFTER,
    WORTH_ANOTHER,
    check_base_url,
    is_unencrypted,
    pause,
    retry_after,
    words,
)

logger = logging.getLogger(__name__)

URL, KEY = "SHFCAS_SERVER_URL", "VLLM_API_KEY"

Value = TypeVar("Value")


class Trouble(Exception):
    """A failed attempt that may well succeed later.

    Args:
        message: what went wrong.
        wait: seconds that the server asks to be left alone for; None if it does not ask.
    """

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class Stopped(Exception):
    """Another request has ended the sampling while this one waited for its next attempt."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Prompts and key go to the server that was named and to no other."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class CompletionsClient:
    """A server's address and key; may be used by several threads.

    Args:
        settings: where it is, and when to give up.

    Raises:
        UserError: there is no address, or what stands there is none.
    """

    def __init__(self, settings: ServerConfig) -> None:
        url = settings.base_url or os.environ.get(URL)
        if not url:
            raise UserError(f"where is the completions server? set sampling.server.base_url, or {URL}")
        if not settings.base_url:
            check_base_url(url, URL)
        self.settings, self.url = settings, url.rstrip("/")
        parts = urlsplit(self.url)
        self.host, self.root = parts.netloc, f"{parts.scheme}://{parts.netloc}"
        self._key = os.environ.get(KEY, "").strip()
        if self._key and is_unencrypted(parts):
            logger.warning("%s and all prompts go to %s unencrypted; use https, or a tunnel", KEY, self.host)
        self._opener = urllib.request.build_opener(_NoRedirects)

    def get(self, url: str) -> Any:
        """What the server says at an address; None where it knows none."""

        def read(value: Any) -> Any:
            return value

        try:
            return self._tried(url, None, read, threading.Event())
        except _Refused as error:
            if error.status in (404, 405):
                return None
            raise

    def complete(
        self, body: dict[str, Any], read: Callable[[Any], Value], stop: threading.Event | None = None
    ) -> Value:
        """Sends a completion request, again where that may help.

        Args:
            body: the request.
            read: makes of the reply what is wanted; raises `Trouble` where the reply is broken.
            stop: ends all waiting once it is set.

        Raises:
            UserError: the server refuses the request, or all attempts failed.
            Stopped: see there.
        """
        return self._tried(f"{self.url}/completions", body, read, stop or threading.Event())

    def _tried(self, url: str, body: Any, read: Callable[[Any], Value], stop: threading.Event) -> Value:
        attempt = 0
        while True:
            try:
                return read(self._attempt(url, body))
            except Trouble as error:
                trouble = error
            if attempt == self.settings.max_retries:
                raise UserError(
                    f"{self.host}: {trouble}, after {attempt + 1} attempts; finished shards are kept: "
                    "run the same command again when the server is well"
                ) from trouble
            wait = trouble.wait
            if wait is None:
                wait = pause(self.settings.retry_wait, attempt)
            elif wait > LONGEST_RETRY_AFTER:
                raise UserError(f"{self.host} is to be left alone for {wait:.0f} seconds; run again then")
            logger.debug("%s: %s; again in %.1f s", self.host, trouble, wait)
            if stop.wait(wait):
                raise Stopped
            attempt += 1

    def _attempt(self, url: str, body: Any) -> Any:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, headers)
        try:
            with self._opener.open(request, timeout=self.settings.timeout) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise self._status(error) from None
        except TimeoutError:
            raise Trouble(f"no reply within {self.settings.timeout:g} seconds") from None
        except (OSError, http.client.HTTPException) as error:
            raise Trouble(f"no connection ({self._words(getattr(error, 'reason', error))})") from None
        except ValueError:
            raise Trouble("the reply is not JSON") from None

    def _status(self, error: urllib.error.HTTPError) -> Exception:
        try:
            raw = error.read()
        except (OSError, http.client.HTTPException):
            raw = b""
        said, status = self._words(_message(raw)), error.code
        if status in WORTH_ANOTHER or status >= 500:
            return Trouble(f"status {status} ({said})", retry_after(error.headers))
        if status in (401, 403):
            return UserError(f"{self.host} refuses the key ({status}); check {KEY}")
        return _Refused(f"{self.host} refuses the request ({status}: {said})", status)

    def _words(self, said: object) -> str:
        return words(said, self._key)


class _Refused(UserError):
    """The server understood a request and does not want it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def _message(raw: bytes) -> str:
    """The words in an error's body: as OpenAI's protocol nests them, as vLLM did, or as they are."""
    try:
        value = json.loads(raw)
        inner = value.get("error", value)
        return str(inner.get("message", value) if isinstance(inner, dict) else inner)
    except (ValueError, AttributeError):
        return raw.decode(errors="replace")
