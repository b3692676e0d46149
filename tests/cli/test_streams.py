"""Output that cannot be written: a full disk, and a reader that has seen enough."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shfcas.cli import main

LINE = json.dumps({"prompt_id": "a", "rewards": [1, 2], "logprobs": [2, 1]}) + "\n"
COMMANDS = [["score", "-"], ["env"], ["env", "--json"], ["--help"], ["score", "--help"]]
full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


@full
@pytest.mark.parametrize("buffering", [1, -1], ids=["lines", "blocks"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_full_disk_behind_stdout_is_one_line(
    command: list[str], buffering: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(LINE))
    with open("/dev/full", "w", buffering=buffering) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(command) == 1
    monkeypatch.undo()
    (line,) = capsys.readouterr().err.splitlines()
    name = f"shfcas {command[0]}" if command[0] != "--help" else "shfcas"
    assert line == f"{name}: no space left on the disk for the output; free some space and run it again"


@pytest.mark.parametrize("buffering", [1, -1], ids=["lines", "blocks"])
def test_a_reader_that_has_seen_enough_ends_the_command_quietly(
    buffering: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(LINE * 500))
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering=buffering) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["score", "-"]) == 141
    monkeypatch.undo()
    assert capsys.readouterr().err == ""


def test_a_broken_connection_inside_a_command_is_no_reader_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    from shfcas.cli import env

    def run(config: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(env, "run", run)
    with pytest.raises(BrokenPipeError):
        main(["env"])


@full
@pytest.mark.system
def test_a_process_with_a_full_disk_behind_stdout_says_nothing_else() -> None:
    with open("/dev/full", "w") as stdout:
        command = [sys.executable, "-m", "shfcas", "env"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
