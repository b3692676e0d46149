"""Engines: tasks in order, and what is made of them is what one process makes without."""

import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shfcas.cli import main
from shfcas.conflicts.columns import add_conflicts
from shfcas.conflicts.streaming import score_table
from shfcas.data.candidates import CandidateTable, read_candidates, write_candidates
from shfcas.data.shards import TableRows
from shfcas.engines import RayConfig, open_engine
from shfcas.engines.local import LocalEngine
from shfcas.rewards.scorers import ENSEMBLE_FILE, load_scorer
from shfcas.rewards.table import add_answer_rewards, add_rewards, answer_rewards, score_rows
from shfcas.selection import SELECTABLE, SelectionConfig, select_with_report
from shfcas.selection.sharded import select_table
from shfcas.utils.errors import UsageError, UserError
from shfcas.utils.files import atomic_file, write_json
from tests.support import tiny

LETTERS = "tests.support.tiny:letter_reward"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 90 prompts with every column that a strategy needs, in row groups of ten."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(90):
        count = int(rng.integers(1, 7))
        members = rng.standard_normal((count, 3)).round(2)
        logprobs = rng.standard_normal(count).round(1) - (i % 4 == 0) * 5 * members.mean(1)  # some are conflicts
        rows.append(
            {
                "prompt_id": f"p{i}",
                "prompt": f"how was the {rng.choice(['soup', 'train', 'bread', 'hotel'])} number {i}?",
                "completions": [f"answer {rng.integers(4)}" for _ in range(count)],
                "logprobs": logprobs.tolist(),
                "rewards": members.mean(1).tolist(),
                "reward_variances": members.var(1, ddof=1).tolist(),
                "member_rewards": members.tolist(),
            }
        )
    path = tmp_path_factory.mktemp("tables") / "conflicts.parquet"
    pq.write_table(add_conflicts(CandidateTable.from_rows(rows)).table, path, row_group_size=10)
    return path


class Half:
    """A worker that counts how often it was made."""

    made = 0

    def __init__(self) -> None:
        Half.made += 1

    def __call__(self, task: int, tick: Any) -> tuple[int, str]:
        if task % 2:
            raise UserError(f"{task} is odd")
        tick(task)
        return task // 2, threading.current_thread().name


@pytest.mark.parametrize("model", [True, False])
def test_results_come_in_the_order_of_the_tasks_from_one_worker(model: bool) -> None:
    Half.made, ticks = 0, []
    results = list(LocalEngine().map(Half, [8, 2, 6], ticks.append, model))
    assert [number for number, _ in results] == [4, 1, 3]
    assert (Half.made, sorted(ticks)) == (1, [2, 6, 8])
    assert all((name == "MainThread") == model for _, name in results)
    with pytest.raises(UserError, match="3 is odd"):
        list(LocalEngine().map(Half, [2, 3, 4], model=model))
    Half.made = 0
    assert list(LocalEngine().map(Half, [], model=model)) == [] and Half.made == 0  # no model for nothing


@pytest.mark.parametrize("strategy", SELECTABLE)
def test_passes_over_shards_select_what_one_process_selects(strategy: str, table: Path) -> None:
    for options in ({}, {"diversity": "k_centre", "diversity_pool": 3}):
        config = SelectionConfig(strategy, budget=17, **options)
        for seed in (0, 1):
            expected = select_with_report(TableRows([str(table)]), config, seed)
            assert select_table([str(table)], config, seed=seed, engine=LocalEngine(), shard_rows=10) == expected
            assert len(expected.comparisons) > 10


class Weighing(LocalEngine):
    """Notes the bytes of each result."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def map(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        for result in super().map(*arguments, **options):
            self.sizes.append(len(pickle.dumps(result)))
            yield result


def test_shards_give_counts_for_a_quantile_and_not_their_values(tmp_path: Path) -> None:
    pacs = np.random.default_rng(0).standard_normal((5000, 8))
    columns = {"prompt_id": [f"p{i}" for i in range(5000)], "pacs": pacs.tolist(), "degenerate": [False] * 5000}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=2500)
    config, engine = SelectionConfig("pacs", budget=10, pacs_threshold="q0.9"), Weighing()
    found = select_table([str(tmp_path / "t.parquet")], config, seed=0, engine=engine, shard_rows=2500)
    assert found.report["bounds"] == {"pacs_threshold": np.quantile(np.abs(pacs), 0.9)}
    assert len(engine.sizes) == 6 and max(engine.sizes) < 20_000 < pacs.nbytes / 2 / 4


def test_a_threshold_from_the_null_distribution_adds_up_over_shards(table: Path) -> None:
    config = SelectionConfig(kendall_threshold="auto", false_discovery_rate=0.3, pacs_threshold="0")
    expected = select_with_report(TableRows([str(table)]), config)
    assert select_table([str(table)], config, seed=0, engine=LocalEngine(), shard_rows=10) == expected
    assert 0 < expected.report["kendall"]["chosen"] < 90


@pytest.mark.parametrize("diversity", ["none", "k_centre"])
def test_a_prompt_id_of_two_rows_is_not_asked_about(table: Path, tmp_path: Path, diversity: str) -> None:
    """As two files of prompts without ids have them, each counted from p000000 on."""
    other = pq.read_table(table)
    other = other.set_column(0, "prompt_id", pa.array([f"q{i}" for i in range(89)] + ["p7"]))
    pq.write_table(other, tmp_path / "other.parquet", row_group_size=10)
    files, config = [str(table), str(tmp_path / "other.parquet")], SelectionConfig("random", 500, diversity=diversity)
    with pytest.raises(UserError, match="prompt id 'p7': expected one row, got two"):
        select_with_report(TableRows(files), config)
    with pytest.raises(UserError, match="prompt id 'p7': expected one row, got two"):
        select_table(files, config, seed=0, engine=LocalEngine(), shard_rows=10)
    few = SelectionConfig("random", 1)  # not about p7
    assert select_table(files, few, seed=0, engine=LocalEngine(), shard_rows=10) == select_with_report(
        TableRows(files), few
    )


def test_a_selection_of_nothing_counts_all_shards(table: Path) -> None:
    config = SelectionConfig(kendall_threshold="2")
    with pytest.raises(UserError, match="selected nothing from 90 prompts"):
        select_table([str(table)], config, seed=0, engine=LocalEngine(), shard_rows=10)


def test_joined_parts_are_the_file_that_one_process_writes(table: Path, policy: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"reward_model": LETTERS, "shard_rows": 20}
    one = score_table([str(table)], tmp_path / "one.parquet", scorer=load_scorer(LETTERS), **options)
    joined = score_table([str(table)], tmp_path / "joined.parquet", engine=LocalEngine(), **options)
    assert joined == one
    assert (tmp_path / "joined.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert not (tmp_path / ".joined.parquet.work").exists()
    with pytest.raises(UserError, match="is one of the inputs"):
        score_table([str(table)], table, engine=LocalEngine())
    with pytest.raises(UserError, match="no trained reward head"):  # said before a worker is asked
        score_table([str(table)], tmp_path / "parts", reward_model=policy, engine=LocalEngine())
    assert not (tmp_path / "parts").exists()


def test_blocks_are_scored_as_the_whole_table_is(table: Path, tmp_path: Path) -> None:
    members = [tiny.save_reward_model(tmp_path / name, seed) for seed, name in enumerate("ab")]
    write_json(tmp_path / ENSEMBLE_FILE, {"members": ["a", "b"]})
    candidates = read_candidates(table)
    for name in (members[0], str(tmp_path), LETTERS):
        for cost_model in (False, True):
            scorer = load_scorer(name, cost_model)
            expected = add_rewards(candidates, scorer)
            made = add_answer_rewards(LocalEngine(), name, candidates, cost_model)
            assert made.table.schema == expected.table.schema
            columns = [n for n in ("rewards", "reward_variances", "member_rewards") if n in expected]
            assert len(columns) == (3 if name == str(tmp_path) else 1)
            assert [made.column(n) for n in columns] == [expected.column(n) for n in columns]
            plain = answer_rewards(LocalEngine(), name, candidates.rows(), cost_model)
            assert plain == score_rows(scorer, candidates.rows())


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "x") as one:
        one.write_text("whole")
        with atomic_file(tmp_path / "x") as two:
            two.write_text("whole")
            assert one != two
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_engines_that_are_not_there_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_candidates(tmp_path / "t.parquet", CandidateTable(pa.table({"prompt_id": ["a"]})))
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["select", str(tmp_path / "t.parquet"), "--engine", "ray"]) == 1
    assert "pip install 'shfcas[ray]'" in capsys.readouterr().err
    assert main(["select", str(tmp_path / "t.parquet"), "--engine", "rey"]) == 2
    assert "engine: expected one of local, ray, got 'rey'; did you mean ray?" in capsys.readouterr().err
    assert main(["score", "-", "--engine", "ray"]) == 2
    assert "engine: expected local for JSON lines" in capsys.readouterr().err
    with open_engine("local", RayConfig()) as engine:
        assert isinstance(engine, LocalEngine)


@pytest.mark.parametrize(
    "bad", [{"workers": 0}, {"cpus": -1.0}, {"gpus": -1.0}, {"retries": -1}, {"start_timeout": 0.0}]
)
def test_impossible_settings_are_refused(bad: dict) -> None:
    with pytest.raises(UsageError, match=f"^{next(iter(bad))}: expected "):
        RayConfig(**bad)
