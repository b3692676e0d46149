"""The commands `shfcas feedback export` and `import`."""

import logging
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shfcas.cli import main
from shfcas.data.preferences import read_preferences
from shfcas.feedback.annotation.schema import Judgement
from shfcas.feedback.annotation.store import Store
from shfcas.feedback.exchange import FORMATS, ExchangeBaseConfig, export_answers
from shfcas.utils.errors import UserError
from tests.support.exchange_cases import ITEMS, answer


@pytest.fixture
def command(capsys: pytest.CaptureFixture) -> Iterator[Any]:
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["feedback", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield call
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.mark.parametrize("format", FORMATS)
def test_the_command_exports_and_imports(store: Store, fresh: Store, tmp_path: Path, command: Any, format: str) -> None:
    run, out = tmp_path / "run", tmp_path / "out" / "answers.json"
    store.record(answer("j9", 4))
    code, printed, error = command("export", run, "--format", format, "--out", out)
    assert (code, error) == (0, "") and f"output: {out}" in printed
    code, printed, error = command("import", tmp_path / "fresh", "--format", format, out)
    assert (code, error) == (0, "") and f"new: {len(fresh.judgements())}" in printed
    assert fresh.judgements()


def test_the_command_uses_the_settings_of_the_run(store: Store, tmp_path: Path, command: Any) -> None:
    (tmp_path / "run" / "config.yaml").write_text("human: {overlap: 1, clearly: 4.0}\n")
    store.record(Judgement("one", ITEMS[4].id, "ada", "first", strength="clearly"))
    assert command("export", tmp_path / "run", "--format", "trl", "--out", tmp_path / "p.jsonl")[0] == 0
    assert {p.prompt_id: p.margin for p in read_preferences(tmp_path / "p.jsonl")}["p4"] == 4.0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["exprot", "run"], 2, "expected export RUN --out FILE, import RUN FILE"),
        (["import", "run"], 2, "expected export RUN"),
        (["export", "run"], 2, "missing: out"),
        (
            ["export", "run", "--out", "x", "--format", "csv"],
            2,
            "format: expected one of jsonl, trl, label-studio, argilla, got 'csv'",
        ),
        (["export", "nowhere", "--out", "x"], 1, "nowhere is not a run directory"),
        (["export", "empty", "--out", "x"], 1, "empty has no feedback.sqlite"),
        (["export", "run", "--out", "x.xml", "--format", "label-studio"], 1, "expected a name in .json, got x.xml"),
        (["import", "empty", "x", "--format", "trl"], 1, "empty has no feedback.sqlite"),
        (["export", "run", "--out", "x", "--run_queue", "round-9"], 1, "no queue round-9; it has round-1"),
        ([], 2, "missing: gold"),
        (["--gold", "x", "--out", "y"], 2, "out: expected export RUN before it"),
    ],
)
def test_mistakes_are_one_line(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Any,
    arguments: list,
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    got, printed, error = command(*arguments)
    assert (got, printed) == (code, "") and message in error and error.count("\n") == 1
    assert not (tmp_path / "empty" / "feedback.sqlite").exists()


def test_the_commands_of_the_page_do_what_it_says(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    """One after another; what comes back from another tool is what went there."""
    page = (Path(__file__).parents[3] / "docs" / "exchange.md").read_text(encoding="utf-8")
    lines = [shlex.split(line) for line in page.splitlines() if line.startswith("shfcas ")]
    assert {words[words.index("--format") + 1] for words in lines} == set(FORMATS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "run").rename("runs/mine")
    (tmp_path / "runs" / "copy").mkdir()
    exported = ""
    for words in lines:
        if words[2] == "export":
            exported = words[words.index("--out") + 1]
        for name in words[4:] if words[2] == "import" else ():
            if name.endswith((".json", ".jsonl")) and not Path(name).exists():
                Path(name).write_bytes(Path(exported).read_bytes())
        code, _, error = command(*words[2:])
        assert (words[:2], code, error) == (["shfcas", "feedback"], 0, ""), words
        assert Path(exported).exists()


def test_a_run_without_a_queue_says_so(tmp_path: Path) -> None:
    with (
        Store(tmp_path / "empty.sqlite") as empty,
        pytest.raises(UserError, match="the run has no queue at all; it has"),
    ):
        export_answers(empty, tmp_path / "x", ExchangeBaseConfig())
