"""A client for JSON over HTTP: deadlines, limits on replies, one retry policy; nothing that it shows contains the key.

Connections live in an asyncio loop in a thread of their own. So a deadline also holds against a server that sends one
byte after another, and `Client.cancel` and Ctrl-C end a request at once. The methods block and are safe for threads.
"""

import asyncio
import concurrent.futures
import json
import logging
import random
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from shfcas.utils.errors import MissingExtra, UserError
from shfcas.utils.http import LONGEST_BACKOFF, LONGEST_RETRY_AFTER, Endpoint, backoff
from shfcas.utils.http_bodies import ENCODINGS, BrokenBody, read_body
from shfcas.utils.http_failures import Failure, bad_status, no_connection

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 20.0  # seconds
IDLE_TIMEOUT = 1.0  # seconds that an unused connection is kept; servers close theirs after 2 or more
LARGEST_ERROR = 2**16  # bytes of an error's body that are read
THREAD = "shfcas-http"
LIBRARY_LOGGERS = ("httpx2", *(f"httpcore2.{part}" for part in ("connection", "http11", "proxy", "socks")))

Value = TypeVar("Value")


class RequestError(UserError):
    """A request that got no usable reply; the message is one line without the key.

    Attributes:
        failure: the last attempt.
    """

    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message)
        self.failure = failure

    def __reduce__(self) -> tuple[Any, ...]:  # errors travel between processes
        return type(self), (str(self), self.failure)


class Refused(RequestError):
    """A request that failed in a way that another attempt would not change."""


class GaveUp(RequestError):
    """A request that failed in all its attempts, or until its time was up."""


class Stopped(Exception):
    """A request that its caller has ended."""


class BadReply(Exception):
    """Raised by the reader of a reply that is broken, so that the request is sent again."""


class Client:
    """Sends requests to one endpoint; may be used by several threads.

    Redirects are not followed, cookies are not kept, and proxies are used as `Endpoint.proxy` says.

    Args:
        endpoint: the address and the key.
        timeout: seconds for one attempt, from the first packet to the last byte of the reply.
        max_retries: further attempts after a failed one.
        retry_wait: seconds before the first of those; see `backoff`.
        concurrency: connections at a time.
        max_reply_bytes: size of the largest reply that is read, both as it is sent and after decompression.
        headers: further headers of every request.
        rng: the source of random waits.

    Attributes:
        endpoint: see there.
        retries: number of attempts after a failed one so far.

    Raises:
        UserError: the environment names a proxy or certificates that cannot be used.
        MissingExtra: the package `httpx2` is not installed.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout: float,
        max_retries: int,
        retry_wait: float,
        concurrency: int,
        max_reply_bytes: int,
        headers: Mapping[str, str] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.endpoint, self.retries = endpoint, 0
        self._timeout, self._max_retries, self._retry_wait = timeout, max_retries, retry_wait
        self._max_reply_bytes, self._rng = max_reply_bytes, rng or random.Random()
        self._guard = threading.Lock()
        self._not_before = 0.0  # the endpoint has asked to wait until then
        self._under_way: set[concurrent.futures.Future] = set()
        proxy = endpoint.proxy()
        self._route = " through the proxy of the environment" if proxy else ""
        self._http = _connections(endpoint, concurrency, headers or {}, proxy)
        self._loop = _Loop()
        threading.Thread(target=_serve, args=(self._loop, self._http), name=THREAD, daemon=True).start()
        self._finalizer = weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def __repr__(self) -> str:
        return f"Client({self.endpoint.url!r})"

    def request(
        self,
        method: str,
        url: str,
        body: Any = None,
        read: Callable[[Any], Value] = lambda reply: reply,
        stop: threading.Event | None = None,
        *,
        timeout: float | None = None,
        max_retries: int | None = None,
    ) -> Value:
        """Sends a request, again where that may help, and returns the result of `read` on the JSON of the reply.

        While the endpoint asks to wait, no thread starts an attempt. Waits add at most a minute per attempt to the
        timeouts of the attempts.

        Args:
            method: such as `POST`.
            url: the full address, at the endpoint.
            body: sent as JSON; None sends nothing.
            read: converts the reply; raises `BadReply` if it is broken.
            stop: ends the request before its next attempt once it is set.
            timeout: seconds for one attempt, if not the client's.
            max_retries: further attempts, if not the client's.

        Raises:
            Refused: another attempt would not help.
            GaveUp: all attempts failed.
            Stopped: `stop` was set, or the request was cancelled.
        """
        timeout = self._timeout if timeout is None else timeout
        attempts = 1 + (self._max_retries if max_retries is None else max_retries)
        stop = stop or threading.Event()
        content = None if body is None else json.dumps(body).encode()
        self._sleep_until(0.0, stop)
        give_up_at = time.monotonic() + attempts * (timeout + LONGEST_BACKOFF)
        attempt = 0
        while True:
            attempt += 1
            seconds = min(timeout, max(0.0, give_up_at - time.monotonic()))
            result = self._attempt(method, url, content, read, stop, seconds)
            if not isinstance(result, Failure):
                return result
            host = self.endpoint.host
            if not result.temporary:
                raise Refused(f"{host} {result.reason}", result)
            if result.wait is not None and result.wait > LONGEST_RETRY_AFTER:
                message = f"{host} asks to wait {result.wait:.0f} seconds ({result.reason}); start again after that"
                raise Refused(message, result)
            again_at = self._next_attempt(result, attempt)
            if attempt == attempts or again_at >= give_up_at:
                plural = "s" if attempt > 1 else ""
                raise GaveUp(f"{host}: {result.reason}, after {attempt} attempt{plural}", result)
            logger.debug("%s: %s; again in %.1f s", host, result.reason, max(0.0, again_at - time.monotonic()))
            self._sleep_until(again_at, stop)
            with self._guard:
                self.retries += 1

    def cancel(self) -> None:
        """Ends all requests under way; their callers get `Stopped`, so set their `stop` first."""
        with self._guard:
            under_way = list(self._under_way)
        for future in under_way:
            future.cancel()

    def close(self) -> None:
        """Ends all requests and closes the connections; also done when nothing refers to the client any more."""
        self._finalizer()

    def _next_attempt(self, failure: Failure, attempt: int) -> float:
        """Returns the time of the next attempt; a time that the endpoint named holds for all threads."""
        with self._guard:
            if failure.wait:
                self._not_before = max(self._not_before, time.monotonic() + failure.wait)
                return self._not_before
            return time.monotonic() + backoff(self._retry_wait, attempt, self._rng)

    def _sleep_until(self, moment: float, stop: threading.Event) -> None:
        while (left := max(moment, self._not_before) - time.monotonic()) > 0:
            if stop.wait(left):
                break
        if stop.is_set():
            raise Stopped

    def _attempt(
        self,
        method: str,
        url: str,
        content: bytes | None,
        read: Callable[[Any], Value],
        stop: threading.Event,
        seconds: float,
    ) -> Value | Failure:
        """Sends a request once."""
        result = self._wait_for(self._exchange(method, url, content, seconds), stop)
        if isinstance(result, Failure):
            return result
        try:
            value = json.loads(result)
        except (ValueError, RecursionError):
            said = self.endpoint.quote(result[:1000].decode(errors="replace"))
            return Failure(f"the reply is not JSON ({said})" if said else "the reply is empty")
        try:
            return read(value)
        except BadReply as error:
            return Failure(str(error))

    def _wait_for(self, exchange: Coroutine[Any, Any, bytes | Failure], stop: threading.Event) -> bytes | Failure:
        future = asyncio.run_coroutine_threadsafe(exchange, self._loop)
        with self._guard:
            self._under_way.add(future)
        try:
            if stop.is_set():  # `cancel` may have come before the line above
                raise Stopped
            return future.result()
        except concurrent.futures.CancelledError:
            raise Stopped from None
        finally:
            future.cancel()  # if Ctrl-C or `stop` got us here
            with self._guard:
                self._under_way.discard(future)

    async def _exchange(self, method: str, url: str, content: bytes | None, seconds: float) -> bytes | Failure:
        """Returns the body of a successful reply.

        Errors of httpx2 become a `Failure` here, since they hold the request with its key.
        """
        import httpx2

        try:
            async with asyncio.timeout(seconds), self._http.stream(method, url, content=content) as response:
                body = await read_body(response, self._max_reply_bytes if response.is_success else LARGEST_ERROR)
        except TimeoutError:
            return Failure(f"no reply within {round(seconds, 2):g} seconds")
        except httpx2.ConnectTimeout:
            return Failure(f"no connection within {CONNECT_TIMEOUT:g} seconds")
        except BrokenBody as error:
            return Failure(f"the reply cannot be read ({self.endpoint.quote(error)})", status=response.status_code)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, UnicodeError) as error:
            return no_connection(self.endpoint, error, self._route)
        if not response.is_success:
            return bad_status(self.endpoint, response.status_code, response.headers, body.content)
        if not body.whole:
            limit = self._max_reply_bytes
            return Failure(f"sent a reply of more than {limit:,} bytes, which is not read", False, response.status_code)
        return body.content


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that looks up host names in daemon threads, so that no program waits at its end for a lookup."""

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        future: concurrent.futures.Future = concurrent.futures.Future()

        def look_up() -> None:
            future.set_running_or_notify_cancel()
            try:
                future.set_result(socket.getaddrinfo(host, port, **options))
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=look_up, daemon=True).start()
        return await asyncio.wrap_future(future, loop=self)


def _connections(
    endpoint: Endpoint, concurrency: int, headers: Mapping[str, str], proxy: str | None
) -> "httpx2.AsyncClient":
    """Returns a client of httpx2, which opens connections when they are needed.

    Raises:
        UserError, MissingExtra: see `Client`.
    """
    try:
        import httpx2
    except ModuleNotFoundError:
        raise MissingExtra("httpx2", "rlhf") from None
    from http.cookiejar import CookieJar, DefaultCookiePolicy

    for name in LIBRARY_LOGGERS:
        logging.getLogger(name).addFilter(_not_ours)
    limits = httpx2.Limits(
        max_connections=concurrency, max_keepalive_connections=concurrency, keepalive_expiry=IDLE_TIMEOUT
    )
    try:
        httpx2.URL(endpoint.url)
    except httpx2.InvalidURL:
        raise UserError(f"{endpoint.setting}: expected an address such as http://localhost:8000/v1") from None
    try:
        certificates = httpx2.create_ssl_context()
    except (OSError, ssl.SSLError):
        raise UserError("SSL_CERT_FILE, SSL_CERT_DIR: the certificates cannot be read; correct or unset them") from None
    try:
        transport = httpx2.AsyncHTTPTransport(verify=certificates, limits=limits, proxy=proxy)
    except ImportError:
        remedy = "install it with: pip install socksio"
        raise UserError(f"the proxy for {endpoint.host} speaks SOCKS, for which socksio is needed; {remedy}") from None
    except (httpx2.InvalidURL, ValueError):  # whose message may contain the proxy's password
        names = f"{endpoint.scheme.upper()}_PROXY and ALL_PROXY"
        raise UserError(
            f"the proxy for {endpoint.host} has no usable address; check {names}, or add the host to NO_PROXY"
        ) from None
    sent = {
        "Accept": "application/json",
        "Accept-Encoding": ", ".join(ENCODINGS),
        "Content-Type": "application/json",
        "User-Agent": "shfcas",
    }
    return httpx2.AsyncClient(
        transport=transport,
        headers={**sent, **headers, **endpoint.authorization()},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT),  # the rest is bounded by the attempt's deadline
        follow_redirects=False,
        trust_env=False,
    )


def _serve(loop: asyncio.AbstractEventLoop, http: "httpx2.AsyncClient") -> None:
    """Runs a client's loop until it is stopped, then closes its connections."""

    async def shut() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await http.aclose()

    loop.run_forever()
    loop.run_until_complete(shut())
    loop.close()


def _not_ours(record: logging.LogRecord) -> bool:
    """Drops the libraries' records about our requests, since they quote reason phrases and headers with the key."""
    return record.threadName != THREAD
