"""A queue file is labelled by people without a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shfcas.cli import main
from shfcas.data.candidates import CandidateTable, write_candidates
from shfcas.data.preferences import read_preferences
from shfcas.feedback.annotation.config import settings_of_run
from shfcas.feedback.web.server import running
from shfcas.utils.files import write_jsonl
from tests.support.page_client import Client, answer_all


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt_id": name, "prompt": "how?", "completions": [f"{name}0", f"{name}1"]} for name in "abc"]
    write_candidates(tmp_path / "conflicts.parquet", CandidateTable.from_rows(rows))
    write_jsonl(tmp_path / "queue.jsonl", [{"prompt_id": name, "first": 0, "second": 1} for name in "abc"])
    return tmp_path


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "shfcas", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


@pytest.mark.system
def test_people_label_a_queue_file(files: Path, capsys: pytest.CaptureFixture) -> None:
    given = ["--queue", "queue.jsonl", "--input", "conflicts.parquet"]
    page = start("annotate", *given, "--output", "labels", "--port", "0", "--overlap", "2", "--annotators", "ada,ben")
    assert page.stdout.readline().startswith("serving labels at")
    links = dict(page.stdout.readline().split() for _ in range(2))
    waiting = start("feedback", "--source", "human", *given, "--folder", "labels", "--output", "new.jsonl")
    try:
        for link in links.values():
            client = Client(running(files / "labels"))
            client.sign_in(link.partition("#token=")[2])
            assert answer_all(client, lambda task: "left" if task["left"]["text"].endswith("1") else "right") == 3
        printed, errors = waiting.communicate(timeout=300)
        assert waiting.returncode == 0, errors
        assert "preferences: 3" in printed
    finally:
        page.terminate()
        page.communicate(timeout=300)
        waiting.kill()
    assert [(p.chosen, p.annotator) for p in read_preferences("new.jsonl")] == [(f"{n}1", "ada+ben") for n in "abc"]
    assert settings_of_run("labels").overlap == 2
    assert main(["feedback", "export", "labels", "--out", "answers.jsonl"]) == 0
    assert main(["feedback", "import", "labels", "answers.jsonl"]) == 0
    assert "new: 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "missing: --queue, --input"),
        (["--queue", "queue.jsonl"], 2, "missing: --input"),
        (["empty"], 1, "empty has no comparisons to label yet; start shfcas run --feedback human"),
        (["empty", "--input", "conflicts.parquet"], 2, "input: expected only without a run directory"),
        (["--queue", "none.jsonl", "--input", "conflicts.parquet"], 1, "none.jsonl does not exist"),
        (["--queue", "no.jsonl", "--input", "conflicts.parquet"], 1, "no.jsonl has no comparisons"),
    ],
)
def test_what_is_missing_is_named(
    files: Path, capsys: pytest.CaptureFixture, arguments: list[str], code: int, message: str
) -> None:
    (files / "empty").mkdir()
    (files / "no.jsonl").touch()
    assert main(["annotate", *arguments]) == code
    assert message in capsys.readouterr().err
    assert not (files / "annotation").exists()
