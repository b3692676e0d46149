"""The command `shfcas feedback` with a judge."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shfcas.cli import main
from shfcas.data.candidates import write_candidates
from shfcas.data.preferences import read_preferences
from shfcas.feedback.judge.cache import Reply, ReplyCache
from shfcas.utils.errors import UserError
from shfcas.utils.files import read_json, write_jsonl
from tests.support.judge_cases import LONGER, QUEUE, TABLE, Serve, judged
from tests.support.judge_server import Request, error, longer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_candidates("conflicts.parquet", TABLE)
    write_jsonl("queue.jsonl", [vars(c) for c in QUEUE])
    return tmp_path


def test_the_command_writes_preferences_and_a_report(serve: Serve, folder: Path, capsys: pytest.CaptureFixture) -> None:
    server = serve(longer)
    command = ["feedback", "--source", "judge", "--judge.model", "m", "--judge.base_url", server.url]
    server.script = lambda request: longer(request) if len(server.requests) <= 3 else error(401)
    assert main([*command, "--judge.concurrency", "1"]) == 1
    assert "refuses the key (401)" in capsys.readouterr().err
    assert not (folder / "preferences.jsonl").exists() and not (folder / "judge.json").exists()
    server.script = longer
    assert main([*command, "--round", "3", "--json"]) == 0
    captured = capsys.readouterr()
    assert "m judged 4 comparisons: 3 preferences, 1 ties, 0 depend on the order, 0 without a" in captured.err
    assert "(5 asked, 3 from the cache, 800 + 80 tokens)" in captured.err
    assert judged(read_preferences("preferences.jsonl")) == LONGER
    assert {(p.source, p.annotator, p.round) for p in read_preferences("preferences.jsonl")} == {("judge", "m", 3)}
    report = read_json("judge.json")
    assert json.loads(captured.out) == {**report, "output": "preferences.jsonl"}
    assert (report["asked"], report["cached"]) == (5, 3)
    assert not list(folder.glob(".*"))


@pytest.mark.system
def test_killed_and_started_again_the_command_asks_only_what_is_missing(serve: Serve, folder: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def script(request: Request) -> str:
        if len(server.requests) == 6:
            reached.set()
            go_on.wait(100)
        return longer(request)

    server = serve(script)
    command = ["feedback", "--source", "judge", "--judge.model", "m", "--judge.base_url", server.url]
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-m", "shfcas", *command, "--judge.concurrency", "1"],
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    try:
        assert reached.wait(100), process.poll()
    finally:
        process.kill()
        process.wait()
        go_on.set()
    before = [json.dumps(request) for request in server.requests]
    assert main(command) == 0
    after = [json.dumps(request) for request in server.requests[6:]]
    assert judged(read_preferences("preferences.jsonl")) == LONGER
    assert len(after) == 3 and before[5] in after and not set(before[:5]) & set(after)
    report = read_json("judge.json")
    assert (report["cached"], report["asked"], report["input_tokens"]) == (5, 3, 800)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "missing: gold"),
        (["--source", "judge"], 2, "missing: judge.model"),
        (["--source", "juge"], 2, "did you mean judge?"),
        (["--source", "judge", "--judge.model", "m", "--judge.guidelines", "no.md"], 1, "no.md does not exist"),
        (["--source", "judge", "--judge.modle", "m"], 2, "did you mean --judge.model"),
    ],
)
def test_a_wrong_command_is_one_line(
    arguments: list[str], code: int, message: str, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["feedback", *arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not list(folder.glob(".*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    reply = Reply("key", "A", "longer", 10, 2)

    def filled() -> ReplyCache:
        cache = ReplyCache(tmp_path / "cache.jsonl")
        with open("/dev/full", "wb") as full:
            os.dup2(full.fileno(), cache._file.fileno())
        return cache

    with pytest.raises(UserError, match=r"no space left on the disk while writing .*cache\.jsonl"), filled() as cache:
        cache.add(reply)
    with pytest.raises(KeyboardInterrupt), filled() as cache:
        with pytest.raises(UserError):
            cache.add(reply)
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="no space left"), filled() as cache, pytest.raises(UserError):
        cache.add(reply)
