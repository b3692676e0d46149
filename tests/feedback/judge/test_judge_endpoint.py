"""What happens when the judge's endpoint is in trouble, or is not to be trusted."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import pytest

from shfcas.feedback.judge import client
from shfcas.feedback.judge.config import JudgeConfig
from shfcas.feedback.judge.source import JudgeFeedback
from shfcas.selection import Comparison
from shfcas.utils import http
from shfcas.utils.errors import MissingExtra, UserError
from shfcas.utils.files import read_jsonl
from tests.support.http_cases import drip
from tests.support.judge_cases import KEY, LONGER, QUEUE, TABLE, Serve, first_time, judged, settings
from tests.support.judge_server import Request, Response, answers, error, longer, said
from tests.support.raw_server import RawServer, response, send


@pytest.mark.parametrize(
    "failure",
    [
        error(429, Retry_After="0.01"),
        error(503, Retry_After="0"),
        error(429),
        error(500, "out of memory"),
        Response(status=502, body="<html>bad gateway</html>", headers={"Content-Type": "text/html"}),
        Response(body='{"choices": [{"mess'),
        Response(body='{"error": "busy"}'),
        Response(body="[]"),
        Response(body='{"choices": []}'),
        Response(said("A"), cut=0.1),
    ],
    ids=["429 after", "503 after 0", "429", "500", "html", "half JSON", "no choices", "list", "none", "cut"],
)
def test_what_may_pass_is_tried_again(failure: Response, serve: Serve, tmp_path: Path) -> None:
    server = serve(first_time(failure))
    judge = JudgeFeedback(settings(server, concurrency=8), tmp_path / "cache.jsonl")
    assert judged(judge(QUEUE, TABLE, round=1)) == LONGER
    assert judge.report["retries"] == 8 and judge.report["asked"] == 8 and len(server.requests) == 16


def test_a_reply_that_does_not_come_is_not_waited_for(serve: Serve, tmp_path: Path) -> None:
    server = serve(first_time(Response(said("A"), delay=2.0)))
    judge = JudgeFeedback(settings(server, timeout=0.4, max_retries=50, concurrency=2), tmp_path / "cache.jsonl")
    assert judged(judge(QUEUE[:1], TABLE, round=1)) == LONGER[:1]
    assert judge.report["retries"] >= 2 and judge.report["asked"] == 2


def test_the_time_that_the_endpoint_names_is_kept_instead_of_our_own(serve: Serve, tmp_path: Path) -> None:
    closed_until, early = [0.0], []

    def script(request: Request) -> str | Response:
        now = time.monotonic()
        if not closed_until[0]:
            closed_until[0] = now + 0.3
        elif now >= closed_until[0]:
            return longer(request)
        else:
            early.append(now)
        return error(429, Retry_After="0.3")

    judge = JudgeFeedback(settings(serve(script), retry_wait=10_000.0, concurrency=1), tmp_path / "cache.jsonl")
    assert judged(judge(QUEUE, TABLE, round=1)) == LONGER  # or, with a wait of our own, the test would not end
    assert not early and judge.report["retries"] == 1


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (error(401, f"wrong key {KEY}"), r"refuses the key \(401\); check OPENAI_API_KEY"),
        (error(403), r"refuses the key \(403\)"),
        (error(404, "no model m"), r"\(404: no model m\); check judge.model \('m'\) and judge.base_url"),
        (
            Response(status=307, body="", headers={"Location": "http://127.0.0.1:9/v1"}),
            r"redirects to http://127.0.0.1:9/v1 \(307\), which is not followed; set judge.base_url",
        ),
        (error(429, code="insufficient_quota"), "credit is used up"),
        (error(429, Retry_After="86400"), "asks to wait 86400 seconds"),
        (error(400, "temperature is not supported"), r"refuses the request \(400: temperature is not supported\)"),
        (error(422), r"refuses the request \(422"),
    ],
)
def test_what_cannot_pass_stops_at_once(failure: Response, message: str, serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda request: failure)
    with pytest.raises(UserError, match=message) as caught:
        given = settings(server, concurrency=1, max_failed_share=1.0, response_format="text")
        judge = JudgeFeedback(given, tmp_path / "cache.jsonl")
        judge(QUEUE, TABLE, round=1)
    # A request may be refused for its own text, three are not; the next one may be under way by then.
    assert len(server.requests) in ((3, 4) if "refuses the request" in message else (1,))
    assert "\n" not in str(caught.value)


def test_one_text_that_the_endpoint_refuses_does_not_stop_the_others(serve: Serve, tmp_path: Path) -> None:
    def script(request: Request) -> str | Response:
        return error(400, "too long") if "the longest of all" in answers(request) else longer(request)

    server = serve(script)
    queue = [QUEUE[1], *QUEUE[:1], *QUEUE[2:]]  # it comes first
    judge = JudgeFeedback(settings(server, max_failed_share=0.25), tmp_path / "cache.jsonl")
    assert judged(judge(queue, TABLE, round=1)) == [p for p in LONGER if p[0] != "b"]
    assert judge.report["failed"] == 1 and judge.report["retries"] == 0


def test_no_server_at_all(serve: Serve, tmp_path: Path) -> None:
    server = serve(longer)
    server.http.server_close()
    with pytest.raises(UserError, match=r"no verdict on 1 of 4 comparisons \(failed requests: 1; .*no connection"):
        JudgeFeedback(settings(server, max_retries=1), tmp_path / "cache.jsonl")(QUEUE, TABLE, round=1)


def test_an_endpoint_that_breaks_down_loses_nothing(serve: Serve, tmp_path: Path) -> None:
    def script(request: Request) -> str | Response:
        return longer(request) if len(server.requests) <= 3 else error(500)

    server = serve(script)
    judge = JudgeFeedback(settings(server, concurrency=1, max_retries=1), tmp_path / "cache.jsonl")
    with pytest.raises(UserError, match="verdicts so far are kept"):
        judge(QUEUE, TABLE, round=1)
    assert judge.report["asked"] == 3
    server.script, before = longer, len(server.requests)
    judge = JudgeFeedback(settings(server), tmp_path / "cache.jsonl")
    assert judged(judge(QUEUE, TABLE, round=1)) == LONGER
    assert len(server.requests) - before == judge.report["asked"] == 5
    assert judge.report["cached"] == 3 and judge.report["input_tokens"] == 800


@pytest.mark.parametrize("limit", [1, 3])
def test_so_many_requests_at_a_time_and_no_more(limit: int, serve: Serve, tmp_path: Path) -> None:
    together = threading.Barrier(limit)

    def script(request: Request) -> str:
        together.wait(30)  # goes on when `limit` requests are here
        time.sleep(0.05)  # one too many would be here by then
        return longer(request)

    server = serve(script)
    queue = [Comparison("a", 0, 1), Comparison("b", 0, 1), Comparison("c", 0, 1)]
    JudgeFeedback(settings(server, concurrency=limit), tmp_path / "cache.jsonl")(queue, TABLE, round=1)
    assert server.most_at_once == limit and len(server.requests) == 6


def test_the_key_is_seen_by_the_endpoint_alone(serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An endpoint that throws the key back, in every way it has."""
    echo = [error(500, KEY), error(400, f"Bearer {KEY}"), Response(f"I was sent {KEY}"), Response(said("A", KEY))]

    def script(request: Request) -> Response:
        return echo[len(server.requests) % len(echo)]

    server = serve(script)
    caplog.set_level(logging.DEBUG)
    shown = []
    for failed_share in (0.2, 1.0):
        judge = JudgeFeedback(settings(server, concurrency=1, max_failed_share=failed_share), tmp_path / "cache.jsonl")
        try:
            judge(QUEUE, TABLE, round=1)
        except UserError:
            shown.append(traceback.format_exc())
        shown += [json.dumps(judge.report), repr(judge.settings), repr(vars(judge))]
    for status in (401, 404, 422):
        server.script = lambda request, status=status: error(status, f"wrong: {KEY}")
        with pytest.raises(UserError) as caught:
            JudgeFeedback(settings(server), tmp_path / "cache.jsonl")([Comparison("b", 1, 0)], TABLE, round=1)
        error_of = caught.value
        shown += ["".join(traceback.format_exception(error_of)), repr((error_of.__cause__, error_of.__context__))]
    kept = (tmp_path / "cache.jsonl").read_text()
    assert "***" in kept and len(shown) > 8 and server.keys[0] == f"Bearer {KEY}"
    assert KEY not in "".join([kept, caplog.text, *shown])


ESCAPED = "".join(f"\\u{ord(c):04x}" for c in KEY)
TWICE = ESCAPED.replace("\\", "\\\\")  # so that the reason spells it in escapes once it is read


@pytest.mark.parametrize("form", [KEY, KEY.replace("-", "\\u002d"), KEY.replace("0", "%30"), ESCAPED, TWICE])
def test_the_key_in_a_verdict_is_not_kept(form: str, serve: Serve, tmp_path: Path) -> None:
    """A judge may spell the key so that it only appears once its JSON is read."""
    server = serve(lambda request: json.dumps({"reason": "R", "verdict": "A"}).replace("R", form))
    JudgeFeedback(settings(server), tmp_path / "cache.jsonl")(QUEUE, TABLE, round=1)
    reasons = {row["reason"] for row in read_jsonl(tmp_path / "cache.jsonl")}
    assert reasons == {"***"}


def test_the_key_in_escapes_is_in_no_error_log_or_file(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The key is spelled in the JSON of the reply, of the error, and in a reply that is malformed or cut."""
    bodies = [
        Response(status=500, body=f'{{"error": {{"message": "{ESCAPED}"}}}}'),
        Response(status=500, body="x" + " " * 65_500 + KEY),  # more than is read of an error
        Response(body=f'"{ESCAPED}"'),
        Response(f"{ESCAPED} is no verdict"),
        Response("x" * 290 + KEY),  # more than is kept of a reply
    ]
    caplog.set_level(logging.DEBUG)
    for number, body in enumerate(bodies):
        server = serve(lambda request, body=body: body)
        with pytest.raises(UserError) as caught:
            JudgeFeedback(settings(server, max_retries=1), tmp_path / f"{number}.jsonl")(QUEUE, TABLE, round=1)
        shown = "".join(traceback.format_exception(caught.value)) + caplog.text
        shown += (tmp_path / f"{number}.jsonl").read_text()
        plain = shown.encode().decode("unicode_escape")
        assert server.keys[0] == f"Bearer {KEY}"
        assert "***" in plain or number == 2  # of which the error quotes nothing
        assert KEY[:9] not in shown and KEY[:9] not in plain


def test_a_long_reason_is_cut_before_it_is_kept(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda request: said("A", "why " * 100_000))
    JudgeFeedback(settings(server), tmp_path / "cache.jsonl")(QUEUE, TABLE, round=1)
    rows = read_jsonl(tmp_path / "cache.jsonl")
    assert len(rows) == 8 and {row["reason"] for row in rows} == {"why " * 500}


def test_a_dripping_reply_meets_the_deadline(tmp_path: Path) -> None:
    """One byte after another, each within the timeout; the whole reply would take minutes."""
    with RawServer(drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")) as server:
        began = time.monotonic()
        with pytest.raises(UserError, match=r"no reply within 0\.3 seconds, after 2 attempts"):
            judge = JudgeFeedback(settings(server.url, timeout=0.3, max_retries=1), tmp_path / "cache.jsonl")
            judge(QUEUE[:1], TABLE, round=1)
        assert time.monotonic() - began < 60


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_host_gets_neither_key_nor_texts(status: int, serve: Serve, tmp_path: Path) -> None:
    other = serve(longer)
    elsewhere = other.url.replace("127.0.0.1", "localhost") + "/chat/completions"
    server = serve(lambda request: Response(status=status, body="", headers={"Location": elsewhere}))
    with pytest.raises(UserError, match=rf"redirects to {elsewhere} \({status}\), which is not followed"):
        JudgeFeedback(settings(server), tmp_path / "cache.jsonl")(QUEUE, TABLE, round=1)
    assert server.requests and not other.requests


def test_a_judge_on_this_machine_is_asked_without_a_proxy(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(longer)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    for url in (server.url, server.url.replace("127.0.0.1", "localhost"), server.url.replace("127.0.0.1", "127.1")):
        judge = JudgeFeedback(settings(url, max_retries=0), tmp_path / "cache.jsonl")
        assert judged(judge(QUEUE, TABLE, round=1)) == LONGER


def test_a_reply_that_is_too_large_fails_one_comparison(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LARGEST_REPLY", 1000)

    def script(request: Request) -> str:
        return said("A", "x" * 2000) if "the longest of all" in answers(request) else longer(request)

    judge = JudgeFeedback(settings(serve(script), max_failed_share=0.25), tmp_path / "cache.jsonl")
    assert judged(judge(QUEUE, TABLE, round=1)) == [p for p in LONGER if p[0] != "b"]
    assert judge.report["failed"] == 1 and judge.report["retries"] == 0


def test_account_headers_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    with RawServer(send(response({"error": "no"}, "404 X"))) as server, pytest.raises(UserError, match="404"):
        JudgeFeedback(settings(server.url, concurrency=1), tmp_path / "cache.jsonl")(QUEUE, TABLE, round=1)
    head = server.requests[0].lower()
    assert b"openai-organization: org-1\r\n" in head and b"openai-project" not in head


PROGRAM = """
import sys
from shfcas.feedback.judge.source import JudgeFeedback
from tests.support.judge_cases import QUEUE, TABLE, settings

judge = JudgeFeedback(settings(sys.argv[1], timeout=100.0), sys.argv[2])
try:
    judge(QUEUE, TABLE, round=1)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_does_not_wait_for_replies(serve: Serve, tmp_path: Path) -> None:
    ended = threading.Semaphore(0)

    def talk(connection: socket.socket, request: bytes) -> None:
        if not connection.recv(1):
            ended.release()

    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with RawServer(talk) as server:
        command = [sys.executable, "-c", PROGRAM, server.url, str(tmp_path / "cache.jsonl")]
        with subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True) as process:
            while len(server.requests) < 4:
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            assert all(ended.acquire(timeout=10) for _ in range(4))  # so the endpoint stops too
            output, errors = process.communicate(timeout=30)
    assert (output, process.returncode) == ("interrupted\n", 0) and "Traceback" not in errors


@pytest.mark.parametrize(
    ("key", "url", "message"),
    [
        ("", None, "set OPENAI_API_KEY in the environment, or judge.base_url"),
        ("sk-\u00e9-secret-key", None, "expected printable ASCII characters"),
        ("sk-\nsecret-key", None, "expected printable ASCII characters"),
        (KEY, "localhost:8000/v1", "OPENAI_BASE_URL: expected an address"),
        (KEY, "http://me:password@host/v1", "OPENAI_BASE_URL: leave names, passwords"),
    ],
)
def test_a_wrong_environment_is_named_before_anything_is_asked(
    key: str, url: str | None, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    if url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(UserError, match=message) as caught:
        JudgeFeedback(JudgeConfig(model="m"), tmp_path / "cache.jsonl")
    assert "secret" not in str(caught.value) and "me:password" not in str(caught.value)


def test_a_server_of_ones_own_needs_no_key(serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = serve(longer)
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert judged(JudgeFeedback(JudgeConfig(model="m"), tmp_path / "c.jsonl")(QUEUE, TABLE, round=1)) == LONGER


def test_a_key_in_the_open_is_warned_of(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    http._warn_unencrypted.cache_clear()
    JudgeFeedback(JudgeConfig(model="m", base_url="http://127.0.0.1:1/v1"), tmp_path / "c.jsonl")
    assert not caplog.text
    JudgeFeedback(JudgeConfig(model="m", base_url="http://judge.example/v1"), tmp_path / "c.jsonl")
    assert "go to judge.example unencrypted" in caplog.text


def test_without_httpx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(MissingExtra, match=r"pip install 'shfcas\[rlhf\]'"):
        JudgeFeedback(JudgeConfig(model="m"), tmp_path / "cache.jsonl")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_url": "ftp://host"}, "base_url: expected an address"),
        ({"base_url": "http://[::1"}, "base_url: not an address"),
        ({"base_url": "https://host/v1?key=x"}, "base_url: leave names"),
        ({"criterion": " "}, "criterion: expected"),
        ({"concurrency": 0}, "concurrency: expected at least 1"),
        ({"max_retries": -1}, "max_retries: expected at least 0"),
        ({"timeout": 0.0}, "timeout: expected above 0, got 0.0"),
        ({"temperature": -0.1}, "temperature: expected at least 0"),
        ({"max_failed_share": 2.0}, "max_failed_share: expected at least 0 and at most 1, got 2.0"),
        ({"price_per_million_input": 1.0}, "price_per_million_input: expected both prices or neither, got"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        JudgeConfig(model="m", **values)
