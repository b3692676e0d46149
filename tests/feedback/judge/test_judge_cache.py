"""Replies that are kept are not asked for again."""

from pathlib import Path

import pytest

from shfcas.feedback.judge.cache import Reply, ReplyCache
from shfcas.feedback.judge.source import JudgeFeedback
from shfcas.utils.errors import UserError
from tests.support.judge_cases import QUEUE, TABLE, Serve, settings
from tests.support.judge_server import Request, longer


def test_nothing_is_asked_twice(serve: Serve, tmp_path: Path) -> None:
    server = serve(longer)
    kept = settings(server, cache=str(tmp_path / "kept.jsonl"))
    first = JudgeFeedback(kept, tmp_path / "unused.jsonl")(QUEUE[:3], TABLE, round=1)
    assert len(server.requests) == 6 and not (tmp_path / "unused.jsonl").exists()
    judge = JudgeFeedback(kept, tmp_path / "unused.jsonl")
    assert judge(QUEUE[:3], TABLE, round=1) == first and len(server.requests) == 6
    assert judge.report["cached"] == 6 and judge.report["asked"] == 0 and judge.report["input_tokens"] == 600
    for change in ({"criterion": "shorter"}, {"model": "n"}, {"temperature": 0.5}):
        before = len(server.requests)
        other = settings(server, **{"cache": kept.cache, **change})
        JudgeFeedback(other, tmp_path / "unused.jsonl")(QUEUE[:3], TABLE, round=1)
        assert len(server.requests) == before + 6


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    first, second = Reply("k", "A", "\ufffd", 1, 2), Reply("l", None, "cut", None, None)
    with ReplyCache(tmp_path / "cache.jsonl") as cache:
        cache.add(Reply("k", "A", "\ud800", 1, 2))  # half a character, which no file can hold
    with (tmp_path / "cache.jsonl").open("a") as file:
        file.write('{"key": "torn li')
    with ReplyCache(tmp_path / "cache.jsonl") as cache:
        assert cache.replies == [first] and cache.get("k") == first
        cache.add(second)
    with ReplyCache(tmp_path / "cache.jsonl") as cache:
        assert cache.replies == [first, second] and cache.get("l") is None


@pytest.mark.parametrize(
    "content",
    [b"\xff\xff\n", b"{}\n", b'{"key": "k", "verdict": "C", "reason": "", "input_tokens": 1, "output_tokens": 1}\n'],
)
def test_another_file_in_the_place_of_the_cache_is_refused(content: bytes, serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "cache.jsonl").write_bytes(content)
    judge = JudgeFeedback(settings(serve(longer)), tmp_path / "cache.jsonl")
    with pytest.raises(UserError, match=r"cache\.jsonl: not a file of a judge's replies"):
        judge(QUEUE, TABLE, round=1)
    assert (tmp_path / "cache.jsonl").read_bytes() == content


def test_two_at_a_time_do_not_write_into_one_cache(serve: Serve, tmp_path: Path) -> None:
    failures = []

    def script(request: Request) -> str:
        with pytest.raises(UserError, match="another process is working in"):
            JudgeFeedback(settings(server), tmp_path / "cache.jsonl")(QUEUE, TABLE, round=1)
        failures.append(1)
        return longer(request)

    server = serve(script)
    JudgeFeedback(settings(server, concurrency=1), tmp_path / "cache.jsonl")(QUEUE[:1], TABLE, round=1)
    assert failures == [1, 1]
