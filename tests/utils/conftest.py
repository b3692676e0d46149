"""Servers on sockets of this machine, and no proxies or certificates from outside."""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.http_cases import KEY, Serve
from tests.support.raw_server import RawServer


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SOME_KEY", KEY)
    monkeypatch.setenv("SSL_CERT_DIR", os.devnull)  # reading certificates takes a while


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as servers:
        yield lambda talk, host="127.0.0.1": servers.enter_context(RawServer(talk, host))
