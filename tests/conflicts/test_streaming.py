"""Conflict scores of tables of any size: the same as of a whole table, whatever the files, shards and kills."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shfcas.cli import main
from shfcas.conflicts import streaming
from shfcas.conflicts.columns import POLICY_SCORES, add_conflicts
from shfcas.conflicts.streaming import iter_score, score_lines, score_table
from shfcas.conflicts.summary import ConflictSummary
from shfcas.data.candidates import read_candidates, write_candidates
from shfcas.engines.local import LocalEngine
from shfcas.rewards.scorers import load_scorer
from shfcas.utils.errors import UserError
from tests.support.conflict_rows import random_rows, table
from tests.support.interruption import killed_at
from tests.support.tiny import letter_reward

LETTERS = "tests.support.tiny:letter_reward"
MADE = ["pacs", "kendall_distance", "kendall_tau_b", "mean_abs_pacs", "degenerate"]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "BATCH_ROWS", 7)


@pytest.fixture
def candidates(tmp_path: Path) -> Path:
    """60 rows of 1 to 9 answers in row groups of 5, one of them with NaN."""
    rows = random_rows([1 + 7 * i % 9 for i in range(60)])
    rows[31]["rewards"][0] = float("nan")
    made = table(*rows)
    path = tmp_path / "candidates.parquet"
    write_candidates(path, made)
    pq.write_table(pq.read_table(path), path, row_group_size=5)
    return path


def same(one: ConflictSummary, other: ConflictSummary) -> bool:
    """Sums may differ in their last digits."""
    a, b = (s.to_dict() for s in (one, other))
    sums = ("kendall_sum", "pacs_sum")
    return [a.pop(n) for n in sums] == pytest.approx([b.pop(n) for n in sums]) and a == b


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    flat = column.combine_chunks()
    return np.asarray((flat.flatten() if pa.types.is_list(flat.type) else flat).to_numpy(zero_copy_only=False), float)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("policy_score", POLICY_SCORES)
def test_parts_are_the_whole(candidates: Path, tmp_path: Path, policy_score: str) -> None:
    whole = add_conflicts(read_candidates(candidates), policy_score).table
    summary = score_table([str(candidates)], tmp_path / "parts", policy_score=policy_score, shard_rows=20)
    assert len(list((tmp_path / "parts").glob("*.parquet"))) == 3
    single = score_table([str(candidates)], tmp_path / "single.parquet", policy_score=policy_score)
    assert same(summary, single)
    streamed = pa.Table.from_batches(iter_score([str(candidates)], policy_score))
    for made in (pq.read_table(tmp_path / "parts"), pq.read_table(tmp_path / "single.parquet"), streamed):
        assert made.column_names == whole.column_names
        for name in whole.column_names:
            if name in MADE:
                np.testing.assert_array_equal(numbers(made.column(name)), numbers(whole.column(name)))
            else:
                assert repr(made.column(name).to_pylist()) == repr(whole.column(name).to_pylist())  # NaN is NaN
    again = read_candidates(tmp_path / "single.parquet")
    assert again.metadata == {"policy": "tiny", "policy_score": policy_score}


def test_rewards_of_a_scorer(candidates: Path, tmp_path: Path) -> None:
    score_table([str(candidates)], tmp_path / "made.parquet", scorer=letter_reward, reward_model=LETTERS)
    made = read_candidates(tmp_path / "made.parquet")
    assert made.metadata["reward_model"] == LETTERS
    assert made.column("rewards")[1] == letter_reward([], made.column("completions")[1])


def test_columns_that_are_carried(candidates: Path, tmp_path: Path) -> None:
    score_table([str(candidates)], tmp_path / "made.parquet", columns=["prompt_id"])
    assert pq.read_schema(tmp_path / "made.parquet").names == ["prompt_id", *MADE]
    with pytest.raises(UserError, match="no column colour"):
        score_table([str(candidates)], tmp_path / "no.parquet", columns=["colour"])


@pytest.mark.parametrize("kind", [pa.large_list(pa.float64()), pa.list_(pa.float32()), pa.list_(pa.float64(), 4)])
def test_other_list_types(tmp_path: Path, kind: pa.DataType) -> None:
    rows = random_rows([4] * 6)
    source = pa.table({n: pa.array([r[n] for r in rows], type=kind) for n in ("rewards", "logprobs")})
    pq.write_table(source, tmp_path / "in.parquet")
    (batch,) = iter_score([str(tmp_path / "in.parquet")])
    expected = add_conflicts(table(*rows))
    np.testing.assert_allclose(numbers(pa.chunked_array([batch.column("pacs")])), numbers(expected.table["pacs"]), 1e-4)
    assert batch.column("kendall_distance").to_pylist() == expected.column("kendall_distance")
    assert batch.column("pacs").type == (pa.list_(pa.float32() if kind.value_type == pa.float32() else pa.float64()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": [[1.0, 2.0], None]}, "row 12, column rewards: null"),
        ({"rewards": [[1.0, 2.0], [1.0, None]]}, "row 12, column rewards: a value is null"),
        ({"logprobs": [[1.0, 2.0], [1.0]]}, "row 12: 2 values in column rewards, 1 in logprobs"),
        ({"logprobs": ["a", "b"]}, "column logprobs has type string, expected lists of numbers"),
        ({"rewards": [["a"], ["b"]]}, "column rewards has type list<.*string>, expected lists of numbers"),
    ],
)
@pytest.mark.usefixtures("small_batches")
def test_errors_name_the_file_and_the_row(tmp_path: Path, change: dict, message: str) -> None:
    sound = {"rewards": [[1.0, 2.0]] * 13, "logprobs": [[1.0, 2.0]] * 13}
    for name, (first, last) in change.items():
        sound[name] = [first] * 12 + [last]
    pq.write_table(pa.table(sound), tmp_path / "in.parquet")
    with pytest.raises(UserError, match=f"in.parquet: {message}"):
        score_table([str(tmp_path / "in.parquet")], tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_a_folder_of_other_tables_or_settings_is_refused(candidates: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    score_table([str(candidates)], parts, shard_rows=20)
    with pytest.raises(UserError, match="policy_score: 'logprob' -> 'mean_logprob'"):
        score_table([str(candidates)], parts, policy_score="mean_logprob", shard_rows=20)
    with pytest.raises(UserError, match="cost_model: None -> True"):
        score_table([str(candidates)], parts, shard_rows=20, cost_model=True)
    pq.write_table(pq.read_table(candidates), candidates, row_group_size=5)  # as many rows, but perhaps others
    with pytest.raises(UserError, match=r"files\..*candidates\.parquet: .* -> "):
        score_table([str(candidates)], parts, shard_rows=20)
    with pytest.raises(UserError, match="contains other Parquet files"):
        score_table([str(candidates)], tmp_path)
    with pytest.raises(UserError, match="is one of the inputs"):
        score_table([str(candidates)], candidates)
    with pytest.raises(UserError, match="s3://bucket/scores: expected a local path"):
        score_table([str(candidates)], "s3://bucket/scores")
    assert not Path("s3:").exists()


def test_a_folder_of_another_function_is_refused(
    candidates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, module = tmp_path / "parts", tmp_path / "a_scorer_of_this_test.py"
    module.write_text("def reward(prompts, completions, **columns):\n    return [1.0 * len(c) for c in completions]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "a_scorer_of_this_test:reward"
    score_table([str(candidates)], parts, scorer=load_scorer(name), reward_model=name)
    score_table([str(candidates)], parts, reward_model=name, engine=LocalEngine())  # the same one by a worker
    module.write_text(module.read_text().replace("1.0", "-1.0"))
    with pytest.raises(UserError, match=f"function: '{name} .*' -> '{name} "):
        score_table([str(candidates)], parts, scorer=load_scorer(name), reward_model=name)
    score_table([str(candidates)], tmp_path / "unnamed", scorer=letter_reward)
    changed = r"function: 'tests\.support\.tiny:letter_reward .*' -> 'a_scorer_of_this_test:reward "
    with pytest.raises(UserError, match=changed):
        score_table([str(candidates)], tmp_path / "unnamed", scorer=load_scorer(name))


def test_inputs_in_another_order_are_refused(candidates: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    pq.write_table(pq.read_table(candidates).slice(0, 30), other)
    score_table([str(candidates), str(other)], tmp_path / "parts")
    (tmp_path / "parts/part-00001.parquet").unlink()  # as if killed before it
    with pytest.raises(UserError, match=r"files\..*candidates\.parquet: 'input 1, .* -> 'input 2, "):
        score_table([str(other), str(candidates)], tmp_path / "parts")
    score_table([str(candidates), str(other)], tmp_path / "parts")
    assert pq.read_table(tmp_path / "parts").num_rows == 90


KILLED_WITHIN = """
import os, signal, sys, threading, time
from pathlib import Path

from shfcas.cli import main

def kill():
    while not Path("killed/part-00010.parquet").exists():
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill, daemon=True).start()  # within, so that it waits for nobody's turn but the command's own
sys.exit(main(sys.argv[1:]))
"""


def write_rows(path: Path, rows: int) -> None:
    """Scored rows of eight answers, in row groups of 500."""
    rng, offsets = np.random.default_rng(0), np.arange(0, rows * 8 + 1, 8, dtype=np.int32)
    lists = [pa.ListArray.from_arrays(offsets, pa.array(rng.standard_normal(rows * 8))) for _ in range(2)]
    pq.write_table(pa.table(dict(zip(("rewards", "logprobs"), lists, strict=True))), path, row_group_size=500)


def finished_parts(folder: Path) -> dict[str, int]:
    """The parts of a table and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*.parquet")}


def check_same_parts(resumed: Path, unbroken: Path, before: dict[str, int], count: int) -> None:
    """Both folders hold the same bytes, and the parts from before the interruption were not written again."""
    after = finished_parts(resumed)
    assert 0 < len(before) < count and before.items() <= after.items()
    assert after.keys() == finished_parts(unbroken).keys() and len(after) == count
    assert all((resumed / name).read_bytes() == (unbroken / name).read_bytes() for name in after)
    assert len(os.listdir(resumed)) == len(os.listdir(unbroken)) == count + 2  # _score.json, .lock


def test_interrupted_and_started_again_gives_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "in.parquet", 4000)
    command = ["score", "in.parquet", "--shard_rows", "500", "--output"]
    with killed_at(tmp_path / "resumed", "part-00003.parquet"):
        main([*command, str(tmp_path / "resumed")])
    before = finished_parts(tmp_path / "resumed")
    capsys.readouterr()
    printed = []
    for name in ("resumed", "unbroken"):
        assert main([*command, str(tmp_path / name)]) == 0
        printed.append(capsys.readouterr().out.replace(name, "folder"))
    assert printed[0] == printed[1]
    check_same_parts(tmp_path / "resumed", tmp_path / "unbroken", before, 8)


@pytest.mark.system
def test_killed_and_started_again_gives_the_same_bytes(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.parquet", 60_000)
    arguments = ["score", "in.parquet", "--shard_rows", "500", "--output"]
    command = [sys.executable, "-m", "shfcas", *arguments]
    killed = subprocess.run([sys.executable, "-c", KILLED_WITHIN, *arguments, "killed"], timeout=100)
    assert killed.returncode == -signal.SIGKILL
    before = finished_parts(tmp_path / "killed")
    printed = [subprocess.run([*command, n], check=True, capture_output=True).stdout for n in ("killed", "unbroken")]
    assert printed[0].replace(b"killed", b"unbroken") == printed[1]
    check_same_parts(tmp_path / "killed", tmp_path / "unbroken", before, 120)


@pytest.mark.parametrize("kept", [0, 5, 0.5, -3])
def test_a_part_that_is_cut_off_is_named(candidates: Path, tmp_path: Path, kept: float) -> None:
    folder = tmp_path / "parts"
    score_table([str(candidates)], folder, shard_rows=20)
    part = folder / "part-00001.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[: int(kept * len(whole)) if kept == 0.5 else int(kept)])
    with pytest.raises(
        UserError, match=r"part-00001.parquet: damaged or cut off .*; delete it and run the same"
    ) as error:
        score_table([str(candidates)], folder, shard_rows=20)
    assert "\n" not in str(error.value)
    part.unlink()
    score_table([str(candidates)], folder, shard_rows=20)
    assert part.read_bytes() == whole


@pytest.mark.parametrize("content", ["[]", "null", '"text"', "3"])
def test_a_description_that_is_no_object_is_named(candidates: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "_score.json").write_text(content)
    with pytest.raises(UserError, match=r"_score\.json: expected a JSON object, got .*; restore the file"):
        score_table([str(candidates)], tmp_path / "parts")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("small_batches")
def test_json_lines(candidates: Path) -> None:
    whole = add_conflicts(read_candidates(candidates))
    lines = [json.dumps({**row, "extra": {"a": i}}) for i, row in enumerate(read_candidates(candidates).rows())]
    output = io.StringIO()
    summary = score_lines([*lines[:3], "\n", *lines[3:]], output)
    made = [json.loads(line, parse_constant=pytest.fail) for line in output.getvalue().splitlines()]
    assert [row["extra"] for row in made] == [{"a": i} for i in range(60)]
    assert [row["prompt_id"] for row in made] == whole.column("prompt_id")
    distances = np.array([row["kendall_distance"] for row in made], dtype=float)  # null for a number that is none
    np.testing.assert_array_equal(distances, whole.column("kendall_distance"))
    assert summary.prompts == 60 and summary.nan == 1


def test_a_column_that_begins_later_is_carried_too() -> None:
    lines = ['{"rewards": [1, 2], "logprobs": [2, 1]}', '{"rewards": [1, 2], "logprobs": [1, 2], "topic": "food"}']
    output = io.StringIO()
    score_lines(lines, output)
    assert [json.loads(line)["topic"] for line in output.getvalue().splitlines()] == [None, "food"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{", "{}"], "stdin: line 1 is not valid JSON"),
        (["[]"], "stdin: line 1 is not a JSON object"),
        (['{"rewards": [1]}'], "no column logprobs"),
        (['{"rewards": ["x"], "logprobs": [1]}'], "stdin: rows 0 to 0, column rewards"),
        (['{"rewards": [1, 2], "logprobs": [1]}'], "stdin: row 0: 2 values in column rewards, 1 in logprobs"),
    ],
)
def test_bad_json_lines(lines: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        score_lines(lines, io.StringIO())


def test_summary_against_numpy(candidates: Path) -> None:
    summary = score_table([str(candidates)], "out.parquet")
    made = read_candidates("out.parquet")
    distance = np.array(made.column("kendall_distance"))
    pacs = np.abs(np.concatenate([p for p in made.column("pacs") if not np.isnan(p).any()]))
    assert (summary.prompts, summary.answers) == (60, sum(map(len, made.column("pacs"))))
    assert summary.degenerate == sum(made.column("degenerate")) > 0
    assert summary.kendall_distance == pytest.approx(np.nanmean(distance))
    assert summary.mean_abs_pacs == pytest.approx(pacs.mean())
    assert summary.kendall == np.histogram(distance[~np.isnan(distance)], 100, (0, 1))[0].tolist()
    assert summary.pacs == np.histogram(pacs, 120, (0, 6))[0].tolist()
    assert summary.quantile("pacs", 0.5) == pytest.approx(np.quantile(pacs, 0.5), abs=0.06)
    assert sum(summary.kendall) == np.isfinite(distance).sum() < 59 and summary.nan == 1
    ranked = sorted(
        (r for r in made.rows() if not r["degenerate"] and not np.isnan(r["kendall_distance"])),
        key=lambda r: (-r["kendall_distance"], -r["mean_abs_pacs"]),
    )
    assert [row["prompt_id"] for row in summary.top] == [row["prompt_id"] for row in ranked[:10]]
    assert summary.text().count("\n") == 19


@pytest.mark.parametrize("cut", [0, 1, 30, 60])
def test_summaries_add_up(candidates: Path, cut: int) -> None:
    (batch,) = iter_score([str(candidates)])
    both = ConflictSummary.from_batch(batch.slice(0, cut)) + ConflictSummary.from_batch(batch.slice(cut), cut)
    assert same(both, ConflictSummary.from_batch(batch))


def test_top_of_many_ties() -> None:
    """Reversed pairs all have distance 1; those of the largest mean abs(PACS) make it, whatever the batch."""
    rows = [{"rewards": [0.0, 1.0 + i, 3.0], "logprobs": [0.0, -1.0, -2.0 - i]} for i in range(40)]
    scored = add_conflicts(table(*rows)).batch()
    top = ConflictSummary.from_batch(scored).top
    order = sorted(
        range(40), key=lambda i: (-scored["kendall_distance"][i].as_py(), -scored["mean_abs_pacs"][i].as_py())
    )
    assert [row["prompt_id"] for row in top] == [f"p{i}" for i in order[:10]]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_histogram_file(candidates: Path, suffix: str) -> None:
    from shfcas.report.plots import conflict_histograms

    conflict_histograms(score_table([str(candidates)], "out.parquet"), f"h.{suffix}")
    assert Path(f"h.{suffix}").stat().st_size > 5000
