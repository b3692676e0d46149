"""A reward server in this process, on a free port, and a plain HTTP client."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

from shfcas.serve.app import Limits, RewardApp
from shfcas.serve.dialects import PolicyText, dialects
from shfcas.serve.log import RewardLog
from shfcas.serve.reward import Answers, Rewards, ServedReward
from shfcas.serve.server import serve
from shfcas.utils.errors import UserError
from shfcas.utils.listening import listen


class Reply:
    """Status, headers and JSON (or text) of a reply."""

    def __init__(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.status, self.headers, self.text = status, headers, data.decode()
        self.json: Any = json.loads(data) if headers.get("content-type") == "application/json" else None


def send(address: str, path: str, body: Any = None, *, token: str = "", headers: dict[str, str] | None = None) -> Reply:
    """Sends a request; bytes are sent as they are, anything else as JSON, and None is a GET."""
    connection = HTTPConnection(urlsplit(address).netloc, timeout=60)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Authorization": f"Bearer {token}"} if token else {}
    method = "GET" if body is None else "POST"
    connection.request(method, path, None if body is None else data, sent | (headers or {}))
    reply = connection.getresponse()
    try:
        return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
    finally:
        connection.close()


@contextmanager
def reward_server(
    names: Sequence[str],
    *,
    policy: str | None = None,
    token: str = "",
    limits: Limits | None = None,
    log: str | None = None,
    **options: Any,
) -> Iterator[tuple[str, RewardApp]]:
    """Serves rewards; yields the address and the application."""
    spoken = dialects(PolicyText(policy) if policy else None)
    app = RewardApp(
        ServedReward(names, **options), spoken, token=token, limits=limits, log=RewardLog(log) if log else None
    )
    with listen("127.0.0.1", 0) as listener, serve(app, listener) as address:
        yield address, app


def scored(reward: ServedReward, *requests: Answers) -> list[Rewards]:
    """The rewards of requests, none of which fails."""
    found = reward(requests)
    assert not [result for result in found if isinstance(result, UserError)]
    return found  # type: ignore[return-value]
