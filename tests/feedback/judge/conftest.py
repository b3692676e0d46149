"""A server for each judge, and no settings from outside."""

import os
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.judge_cases import KEY
from tests.support.judge_server import JudgeServer


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OPENAI_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("SSL_CERT_DIR", os.devnull)  # all is plain HTTP, and reading certificates takes a while


@pytest.fixture
def serve() -> Any:
    with ExitStack() as servers:
        yield lambda script: servers.enter_context(JudgeServer(script))
