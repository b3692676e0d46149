"""Contrasts as columns of tables: in process, streamed, and as the policy score of a table."""

import io
import json
import pickle
from pathlib import Path

import pytest

from shfcas.cli import main
from shfcas.conflicts import contrasts
from shfcas.conflicts.columns import policy_scores
from shfcas.conflicts.contrasts import ContrastColumns
from shfcas.conflicts.streaming import score_lines
from shfcas.data.candidates import CandidateTable, read_candidates, write_candidates
from shfcas.engines.local import LocalEngine
from shfcas.sampling.contrast import Principle
from shfcas.utils.errors import UsageError

GOOD, BAD = Principle("the good soup", "the bad soup"), Principle("a happy day", "a cold day")
FLAG = '[{good: the good soup, bad: the bad soup}, {good: "a happy day", bad: a cold day}]'


def answers(rows: int = 5) -> CandidateTable:
    texts = ["good day", "bad day", "cold soup", ""]
    return CandidateTable.from_rows(
        [
            {
                "prompt_id": f"p{i}",
                "prompt": [{"role": "user", "content": f"how was day {i}?"}],
                "completions": texts,
                "num_tokens": [3, 3, 3, 1],
                "rewards": [1.0, 0.0, float(i), 2.0],
            }
            for i in range(rows)
        ],
        {"policy": "tiny"},
    )


def test_each_principle_is_a_column_with_its_texts_in_the_metadata(
    tiny_models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ContrastColumns(tiny_models["policy"], [GOOD, BAD])
    made = asked(answers())
    assert made.metadata["principles"] == {GOOD.column: GOOD.texts(), BAD.column: BAD.texts()}
    assert made.metadata["policy_score_model"] == tiny_models["policy"]
    one, two = (made.column(p.column) for p in (GOOD, BAD))
    mean = [(x + y) / 2 for row in zip(one, two, strict=True) for x, y in zip(*row, strict=True)]
    assert policy_scores(made.batch(), "contrast").values.tolist() == pytest.approx(mean)
    monkeypatch.setattr(contrasts, "BLOCK", 2)
    shipped = pickle.loads(pickle.dumps(asked))
    assert "_loaded" not in vars(shipped)
    on_an_engine = shipped.on(LocalEngine(), answers())
    assert on_an_engine.column(GOOD.column) == [pytest.approx(row, abs=1e-5) for row in one]
    again = ContrastColumns(tiny_models["policy"], [BAD])(made)
    assert GOOD.column not in again
    assert again.column(BAD.column) == [pytest.approx(row, abs=1e-4) for row in two]


def test_score_adds_them_to_tables_and_lines(tiny_models: dict[str, str], tmp_path: Path) -> None:
    source, scored = tmp_path / "answers.parquet", tmp_path / "scored.parquet"
    write_candidates(source, answers())
    asked = ["--principles", FLAG, "--policy_score_model", tiny_models["policy"], "--policy_score", "contrast"]
    assert main(["score", str(source), "--output", str(scored), *asked]) == 0
    made = read_candidates(scored)
    expected = ContrastColumns(tiny_models["policy"], [GOOD, BAD])(answers())
    assert made.column(GOOD.column) == [pytest.approx(row, abs=1e-5) for row in expected.column(GOOD.column)]
    assert made.metadata["policy_score"] == "contrast" and [*made.metadata["principles"]] == [GOOD.column, BAD.column]
    # A table that has the columns needs no model, and other principles replace them.
    assert main(["score", str(scored), "--output", str(tmp_path / "b.parquet"), "--policy_score", "contrast"]) == 0
    assert read_candidates(tmp_path / "b.parquet").column("pacs") == made.column("pacs")
    other = ["--principles", "[{good: a happy day}]", *asked[2:]]
    assert main(["score", str(scored), "--output", str(tmp_path / "c.parquet"), *other]) == 0
    names = [name for name in read_candidates(tmp_path / "c.parquet").table.column_names if "contrast_" in name]
    assert names == [Principle("a happy day").column]
    lines, written = [json.dumps(row) for row in answers(1).rows()], io.StringIO()
    score_lines(lines, written, policy_score="contrast", contrasts=ContrastColumns(tiny_models["policy"], [GOOD]))
    assert json.loads(written.getvalue())[GOOD.column] == pytest.approx(expected.column(GOOD.column)[0], abs=1e-5)


def test_errors_name_the_key(tiny_models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "answers.parquet"
    write_candidates(source, answers())
    assert main(["score", str(source), "--principles", FLAG]) == 2
    assert "missing: policy_score_model" in capsys.readouterr().err
    assert main(["score", str(source), "--principles", "be good"]) == 2
    assert "principles: expected a list of sections with the keys good, bad" in capsys.readouterr().err
    assert main(["score", str(source), "--principles", "[{bad: rude}]"]) == 2
    assert "missing: principles[0].good" in capsys.readouterr().err
    assert main(["score", str(source), "--policy_score", "contrast"]) == 1
    assert "no column contrast_*" in capsys.readouterr().err
    with pytest.raises(UsageError, match="principles: expected at least one pair"):
        ContrastColumns(tiny_models["policy"], [])
