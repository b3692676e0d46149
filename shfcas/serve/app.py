"""The server as an ASGI application: dialects, token, limits, health and metrics."""

import base64
import binascii
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException

from shfcas.data.chat import TooLong
from shfcas.serve.batching import Batcher, Busy
from shfcas.serve.dialects import BadRequest, Dialect
from shfcas.serve.log import RewardLog
from shfcas.serve.metrics import Metrics
from shfcas.serve.reward import ServedReward
from shfcas.utils.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Limits of the server.

    Attributes:
        most_bytes: of a request's body.
        most_waiting: answers that may wait before further requests are refused.
    """

    most_bytes: int = 16 << 20
    most_waiting: int = 8192


class RewardApp:
    """Application that answers requests with rewards.

    Args:
        reward: rewards of requests.
        dialects: forms of requests and replies.
        token: what requests have to carry; empty if they need not.
        limits: see `Limits`.
        log: file of all rewards, if there is one.

    Attributes:
        asgi: the application.
        stopping: whether the server ends, so that `/health` sends new requests elsewhere.
    """

    def __init__(
        self,
        reward: ServedReward,
        dialects: list[Dialect],
        *,
        token: str = "",
        limits: Limits | None = None,
        log: RewardLog | None = None,
    ) -> None:
        self.limits, self.log, self.stopping = limits or Limits(), log, False
        self._reward, self._token, self.metrics = reward, token.encode(), Metrics()
        self.batcher = Batcher(reward, self.limits.most_waiting, self.metrics.together)
        silent: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
        self.asgi = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, telemetry=silent)
        self.asgi.exception_handler(HTTPException)(_refused)
        self.asgi.get("/health")(self._health)
        self.asgi.get("/metrics")(self._metrics)
        for dialect in dialects:
            self.asgi.post(dialect.path, response_model=None)(self._endpoint(dialect))

    def close(self) -> None:
        """Scores what waits, and closes the log."""
        self.batcher.close()
        if self.log is not None:
            self.log.close()

    def _endpoint(self, dialect: Dialect) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            start = time.perf_counter()
            try:
                response = _json(await self._reply(dialect, request))
            except HTTPException as error:
                response = await _refused(request, error)
            except Exception:  # a fault of ours
                logger.exception("%s failed", dialect.path)
                response = _json({"error": "the server failed; its log says why"}, 500)
            self.metrics.request(dialect.path, response.status_code, time.perf_counter() - start)
            return response

        return endpoint

    async def _reply(self, dialect: Dialect, request: Request) -> Any:
        self._check_sender(request)
        body = _object(await self._body(request))
        try:
            answers = dialect.read(body)
            found = await self.batcher.score(answers)
            reply = dialect.write(found)
        except BadRequest as error:
            raise HTTPException(400, str(error)) from error
        except Busy as error:
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
        except TooLong as error:
            raise HTTPException(422, str(error)) from error
        except UserError as error:  # the reward failed for these answers
            raise HTTPException(500, str(error)) from error
        self.metrics.rewards(found.rewards)
        if self.log is not None:
            self.log.write(answers, found)
        return reply

    async def _health(self) -> Response:
        status = "stopping" if self.stopping else "ok"
        return _json({"status": status, "waiting": self.batcher.waiting}, 503 if self.stopping else 200)

    async def _metrics(self, request: Request) -> Response:
        self._check_sender(request)
        too_long = sum(model.too_long_count for model in self._reward.models)
        return PlainTextResponse(
            self.metrics.text(self.batcher.waiting, too_long), media_type="text/plain; version=0.0.4"
        )

    def _check_sender(self, request: Request) -> None:
        """Checks the token, as a bearer token or as the password of the address (`http://any:TOKEN@host`).

        OpenRLHF and slime send no headers of their own, but their HTTP client sends the password of an address. Without
        a token, pages that are open in a browser of this machine are refused.
        """
        if not self._token:
            if "origin" in request.headers:
                raise HTTPException(403, "expected a trainer, got a browser's page")
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                given = ""
        elif scheme.lower() != "bearer":
            given = ""
        if not hmac.compare_digest(given.strip().encode(), self._token):
            message = (
                "wrong or missing token; send Authorization: Bearer TOKEN, or use http://any:TOKEN@HOST as address"
            )
            raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})

    async def _body(self, request: Request) -> bytes:
        most = self.limits.most_bytes
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise HTTPException(413, f"expected a body of at most {most:,} bytes", {"Connection": "close"})
            parts.append(part)
        return b"".join(parts)


def _object(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"expected a JSON object ({str(error)[:80]})") from error
    if not isinstance(body, dict):
        raise HTTPException(400, f"expected a JSON object, got {type(body).__name__}")
    return body


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Returns JSON in which every number keeps all its bits."""
    return Response(json.dumps(value, allow_nan=False), status, headers, media_type="application/json")


async def _refused(request: Request, error: HTTPException) -> Response:
    return _json({"error": error.detail}, error.status_code, dict(error.headers or {}))
