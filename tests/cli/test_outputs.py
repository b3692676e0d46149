"""An output of the wrong kind is an error before any work, not after it."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from shfcas.cli import COMMANDS, command_module, main
from shfcas.cli._outputs import FILE, FOLDER, OUTPUTS, PICTURE, TABLE

NEEDED = {  # anything: the output is looked at first
    "run": {"policy": "p", "reward_model": "r", "gold": "g", "prompts": "q", "eval_prompts": "e"},
    "compare": {"policy": "p", "reward_model": "r", "gold": "g", "prompts": "q", "eval_prompts": "e"},
    "sample": {"policy": "p", "prompts": "q"},
    "evaluate": {"policy": "p", "reward_model": "r", "gold": "g", "prompts": "q"},
    "sft": {"policy": "p", "demonstrations": "d"},
    "train-reward": {"model": "m", "preferences": "f"},
    "merge": {"policy": "p"},
    "export": {"policy": "p", "reward_model": "r", "prompts": "q"},
    "ppo": {"policy": "p", "reward_model": "r", "prompts": "q"},
    "rloo": {"policy": "p", "reward_model": "r", "prompts": "q"},
    "grpo": {"policy": "p", "reward_model": "r", "prompts": "q"},
    "dpo": {"policy": "p", "preferences": "f"},
    "rso": {"policy": "p", "reward_model": "r", "candidates": "c"},
}
WRONG = {
    FILE: {"folder": "expected a file, got the folder", "file/inside": "lies below .*file, which is a file"},
    FOLDER: {"file": "expected a folder, got the file", "file/in/side": "lies below .*file, which is a file"},
    TABLE: {
        "folder.parquet": "expected a file, got the folder",
        "file": "expected a folder, got the file",
        "file/inside.parquet": "lies below",
    },
    PICTURE: {"picture.gif": r"expected a .png or .svg file, got picture.gif", "folder.png": "got the folder"},
}
CASES = [
    (command, name, path, message)
    for command, outputs in OUTPUTS.items()
    for name, kind in outputs.items()
    for path, message in WRONG[kind].items()
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "folder.parquet", "folder.png"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("mine")
    return tmp_path


@pytest.mark.parametrize(("command", "name", "path", "message"), CASES)
def test_an_output_of_the_wrong_kind(
    command: str, name: str, path: str, message: str, here: Path, capsys: pytest.CaptureFixture
) -> None:
    before = sorted(here.rglob("*"))
    given = [word for key, value in NEEDED.get(command, {}).items() for word in (f"--{key}", value)]
    assert main([command, *given, f"--{name}", path]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"shfcas {command}: {name}: .*{message}", line), line
    assert sorted(here.rglob("*")) == before and (here / "file").read_text() == "mine"


def test_every_output_of_a_command_is_checked() -> None:
    for command in COMMANDS:
        fields: Any = command_module(command).Config.__dataclass_fields__
        names = {name for name in ("output", "out", "plot", "histogram") if name in fields}
        assert names <= OUTPUTS.get(command, {}).keys(), command


def test_metrics_do_not_replace_the_table(here: Path, capsys: pytest.CaptureFixture) -> None:
    given = [word for key, value in NEEDED["evaluate"].items() for word in (f"--{key}", value)]
    assert main(["evaluate", *given, "--output", "e.json"]) == 1
    assert "output: expected a .parquet file, got e.json" in capsys.readouterr().err


def test_a_folder_that_may_not_be_written(
    here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the user of the tests may write everywhere
    assert main(["sample", "--policy", "p", "--prompts", "q", "--output", "new/c.parquet"]) == 1
    assert "may not be written; choose a folder you may write to" in capsys.readouterr().err
