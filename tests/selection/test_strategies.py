"""Each strategy on tables small enough to follow by hand, and what all of them have in common."""

import copy
import json
import math
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shfcas.cli import main
from shfcas.data.shards import TableRows
from shfcas.selection import SELECTABLE, Row, SelectionConfig, columns_to_read, select
from shfcas.utils.errors import UserError
from tests.support.selection_rows import TABLE, asked, config, full_table, row

NAMES = [*SELECTABLE]
RANDOM = ("random", "double_thompson", "drts", "maxmin_lcb", "rso")
COMMITTEE = ("disagreement", "bald", "infomax", "double_thompson")


def prompt(name: str, answers: int, **columns: Any) -> Row:
    """A prompt whose conflict is beside the point."""
    return row(name, [1.0, -1.0, *[0.5] * (answers - 2)], 0.5, **columns)


def wanted(name: str, prompt: Row, seed: int = 0) -> dict[tuple[int, int], float]:
    """The score of each pair, where a strategy scores pairs."""
    return {(c.first, c.second): -p[0] for p, c in SELECTABLE[name].comparisons(prompt, {}, seed)}


# Conflict


def test_kendall_is_the_first_stage_alone() -> None:
    settings = config(pacs_threshold="0", kendall_threshold="0.5")
    assert asked(TABLE, config("kendall")) == asked(TABLE, settings)
    assert {c[0] for c in asked(TABLE, config("kendall"))} == {"mid", "high"}
    assert asked(TABLE, config("kendall", pacs_threshold="99")) == asked(TABLE, settings)


def test_pacs_is_the_second_stage_alone() -> None:
    # Answers of at least 1: low 0, 1 (3, -3); mid 1, 2 (-2, 1.5); high 0, 2, 3, 4 (2, -1, -2.5, 1).
    expected = [("low", 0, 1), ("high", 0, 3), ("mid", 2, 1), ("high", 4, 2)]  # sums 6, 4.5, 3.5, 2
    assert asked(TABLE, config("pacs", kendall_threshold="99")) == expected
    # The median of all twelve abs(PACS) is 1.25.
    assert asked(TABLE, config("pacs", pacs_threshold="q0.5")) == expected[:3]


@pytest.mark.parametrize(
    ("pairing", "expected"),
    [
        ("extreme", [(0, 3), (4, 2)]),
        ("adjacent", [(2, 3), (0, 4)]),  # PACS 2 1 | 0.5 | -1 -2.5: the one in the middle is the odd one out
        ("all", [(0, 3), (4, 3), (0, 2), (1, 3), (4, 2), (0, 1), (1, 2), (2, 3), (0, 4), (4, 1)]),
    ],
)
def test_answers_are_paired_in_the_way_that_is_asked_for(pairing: str, expected: list) -> None:
    settings = config("kendall", kendall_threshold="0.8", pairing=pairing)
    assert [c[1:] for c in asked(TABLE, settings)] == expected


@pytest.mark.parametrize("name", ["shf_cas", "kendall", "pacs"])
def test_random_pairing_has_each_answer_once_and_follows_the_seed(name: str) -> None:
    settings = config(name, kendall_threshold="0", pacs_threshold="0", pairing="random")
    drawn = set()
    for seed in range(20):
        pairs = asked(TABLE, settings, seed)
        drawn.add(tuple(sorted(pairs)))
        assert pairs == asked(TABLE, settings, seed)
        assert len(pairs) == 5  # 3, 4 and 5 answers
        assert max(Counter((p, i) for p, *pair in pairs for i in pair).values()) == 1
        pacs = {r["prompt_id"]: r["pacs"] for r in TABLE}
        assert all(pacs[p][first] > pacs[p][second] for p, first, second in pairs)
    assert len(drawn) > 10


# Rewards


def test_margins_are_reward_differences() -> None:
    rows = [prompt("a", 3, rewards=[2.0, 0.0, 0.9]), prompt("b", 2, rewards=[-7.0, -5.5])]
    expected = [("a", 0, 1), ("b", 0, 1), ("a", 0, 2), ("a", 1, 2)]  # 2, 1.5, 1.1, 0.9
    assert asked(rows, config("reward_margin")) == expected
    assert asked(rows, config("least_margin")) == expected[::-1]


def test_variance_is_that_of_both_answers() -> None:
    rows = [prompt("a", 3, reward_variances=[1.0, 0.5, 0.1]), prompt("b", 2, reward_variances=[0.0, 1.2])]
    # 1.5, 1.2, 1.1, 0.6
    assert asked(rows, config("reward_variance")) == [("a", 0, 1), ("b", 0, 1), ("a", 0, 2), ("a", 1, 2)]


def test_of_equal_scores_prompts_take_turns() -> None:
    rows = [prompt(name, 3, rewards=[0.0, 1.0, 2.0]) for name in "abcd"]
    for seed in range(5):
        order = [c[0] for c in asked(rows, config("least_margin"), seed)]  # 1, 1, 2 each
        assert order[:4] == order[4:8] == order[8:] and sorted(order[:4]) == ["a", "b", "c", "d"]
    assert len({asked(rows, config("least_margin", budget=1), seed)[0] for seed in range(20)}) == 4


def test_rso_with_a_small_beta_pairs_the_best() -> None:
    rows = [prompt("a", 5, rewards=[0.1, 0.9, 0.5, 0.7, 0.3]), prompt("b", 2, rewards=[0.0, 1.0])]
    for seed in range(5):
        chosen = asked(rows, config("rso", rso_beta=1e-6), seed)
        assert sorted(chosen[:2]) == [("a", 1, 3), ("b", 1, 0)]  # a turn each; b has fewer answers than are accepted
        assert chosen[2:] == [("a", 2, 4)]
    assert sorted(asked(rows, config("rso", rso_beta=1e-6, rso_samples=2))) == [("a", 1, 3), ("b", 1, 0)]


def test_rso_with_a_large_beta_pairs_any() -> None:
    one = [prompt("a", 4, rewards=[0.1, 0.9, 0.5, 0.7])]
    counts = Counter(frozenset(asked(one, config("rso", rso_beta=1e9), seed)[0][1:]) for seed in range(600))
    assert len(counts) == 6
    assert sum((n - 100) ** 2 / 100 for n in counts.values()) < 20.5  # chi-squared, 5 degrees of freedom, 1 in 1000


# Committees


VOTES = prompt("a", 3, member_rewards=[[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 2.0, 1.0], [0.5, 0.5, 0.5, 0.0]])


def test_disagreement_is_the_share_of_the_minority() -> None:
    # Differences 0-1: + + - -; 0-2: + + + and a tie, half a vote; 1-2: - - + +
    assert wanted("disagreement", VOTES) == {(0, 1): 0.5, (1, 2): 0.5, (0, 2): 0.125}
    agreed = prompt("b", 2, member_rewards=[[3.0, 1.0], [2.0, -5.0]])
    assert wanted("disagreement", agreed) == {(0, 1): 0.0}
    assert [c[0] for c in asked([agreed, VOTES], config("disagreement"))] == ["a", "a", "a", "b"]


def test_bald_and_infomax_by_hand() -> None:
    # Differences of ln 3 and -ln 3: probabilities of 3/4 and 1/4.
    split = prompt("split", 2, member_rewards=[[math.log(3), 0.0], [0.0, math.log(3)]])
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert wanted("bald", split)[0, 1] == pytest.approx(math.log(2) - entropy, abs=1e-12)
    assert wanted("infomax", split)[0, 1] == pytest.approx(0.125, abs=1e-12)
    undecided = prompt("undecided", 2, member_rewards=[[1.0, 2.0], [1.0, 2.0]])
    agreed = prompt("agreed", 2, member_rewards=[[9.0, 9.0], [0.0, 0.0]])
    extreme = prompt("extreme", 2, member_rewards=[[1e4, -1e4], [-1e4, 1e4]])
    for name, most in (("bald", math.log(2)), ("infomax", 0.5)):
        assert wanted(name, undecided)[0, 1] == wanted(name, agreed)[0, 1] == 0
        assert wanted(name, extreme)[0, 1] == pytest.approx(most, abs=1e-9)
        assert [c[0] for c in asked([undecided, split, extreme], config(name))][:2] == ["extreme", "split"]


def test_bald_prefers_sure_contradiction_and_votes_do_not_see_it() -> None:
    sure = prompt("sure", 2, member_rewards=[[3.0, 0.0], [0.0, 3.0]])
    unsure = prompt("unsure", 2, member_rewards=[[0.1, 0.0], [0.0, 0.1]])
    assert wanted("disagreement", sure) == wanted("disagreement", unsure)
    assert wanted("bald", sure)[0, 1] > 100 * wanted("bald", unsure)[0, 1]


@pytest.mark.parametrize("name", COMMITTEE)
def test_a_member_s_offset_for_a_prompt_does_not_matter(name: str) -> None:
    rows = [r for r in full_table(40) if not r["degenerate"]]
    moved = [{**r, "member_rewards": [[a + 8, b - 16, c] for a, b, c in r["member_rewards"]]} for r in rows]
    settings = SelectionConfig(strategy=name, budget=1000)
    if name == "double_thompson":
        assert asked(moved, settings) == asked(rows, settings)
    else:
        for r, m in zip(rows, moved, strict=True):
            assert wanted(name, m) == pytest.approx(wanted(name, r), abs=1e-9)


def test_double_thompson_asks_about_favourites() -> None:
    favourites = prompt("a", 4, member_rewards=[[9.0, 0.0, 9.0], [1.0, 1.0, 1.0], [0.0, 9.0, 0.0], [2.0, 2.0, 2.0]])
    for seed in range(20):
        assert {frozenset(c[1:]) for c in asked([favourites], config("double_thompson"), seed)} == {frozenset((0, 2))}
    # All like answer 1: it meets any other, and no pair twice.
    agreed = prompt("b", 4, member_rewards=[[0.0, 0.0], [9.0, 9.0], [1.0, 1.0], [2.0, 2.0]])
    met = Counter()
    for seed in range(300):
        pairs = [c[1:] for c in asked([agreed], config("double_thompson"), seed)]
        assert len(set(map(frozenset, pairs))) == len(pairs)
        assert all(1 in pair for pair in pairs)
        met[sum(pairs[0]) - 1] += 1
    assert sum((n - 100) ** 2 / 100 for n in met.values()) < 13.8 and len(met) == 3  # 2 degrees, 1 in 1000


def test_double_thompson_draws_members_alike() -> None:
    # Favourites 0, 0, 1, 2. P({0, 1}) = 1/2 * 1/2 + 1/4 * 2/3 = 5/12 = P({0, 2}), P({1, 2}) = 2 * 1/4 * 1/3 = 1/6.
    one = [prompt("a", 3, member_rewards=[[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])]
    counts = Counter(frozenset(asked(one, config("double_thompson"), seed)[0][1:]) for seed in range(1200))
    expected = {frozenset((0, 1)): 500, frozenset((0, 2)): 500, frozenset((1, 2)): 200}
    assert sum((counts[pair] - n) ** 2 / n for pair, n in expected.items()) < 13.8  # 2 degrees, 1 in 1000


def test_double_thompson_covers_prompts_before_it_returns_to_one() -> None:
    rows = [{**VOTES, "prompt_id": name} for name in "abcdefgh"]
    for seed in range(5):
        assert sorted(c[0] for c in asked(rows, config("double_thompson", budget=8), seed)) == list("abcdefgh")


@pytest.mark.parametrize("name", COMMITTEE)
@pytest.mark.parametrize(("rewards", "said"), [([[1.0], [2.0]], "1"), ([[1.0, 2.0], [1.0, 2.0, 3.0]], "2, 3")])
def test_a_committee_has_the_same_members_for_each_answer(name: str, rewards: list, said: str) -> None:
    with pytest.raises(UserError, match=f"prompt 'a', column member_rewards: expected the same number .*, got {said}"):
        select([prompt("a", 2, member_rewards=rewards)], config(name))


# What all have in common


@pytest.mark.parametrize("name", NAMES)
def test_neither_the_order_of_rows_nor_files_matter(name: str, tmp_path: Path) -> None:
    rows = full_table()
    settings = SelectionConfig(strategy=name, budget=70, pacs_threshold="q0.3", mean_pacs_threshold="q0.5")
    before = copy.deepcopy(rows)
    expected = asked(rows, settings)
    assert rows == before  # rows are read, not changed
    assert len(expected) == len(set(expected)) == 70
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    assert asked(shuffled, settings) == expected
    for number, (begin, end) in enumerate(pairwise((0, 7, 8, 120, 200))):
        pq.write_table(pa.Table.from_pylist(shuffled[begin:end]), tmp_path / f"{number}.parquet", row_group_size=37)
    stored = TableRows([str(tmp_path)])
    stored.columns = columns_to_read(settings, stored.schema.names)
    assert asked(stored, settings) == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_larger_budget_goes_on_where_the_smaller_one_ended(name: str) -> None:
    rows = full_table()
    everything = asked(rows, SelectionConfig(strategy=name, budget=150))
    for budget in (1, 10, 60):
        assert asked(rows, SelectionConfig(strategy=name, budget=budget)) == everything[:budget]


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_where_something_is_random(name: str) -> None:
    rows = full_table()
    settings = SelectionConfig(strategy=name, budget=30)
    one, other = asked(rows, settings, 1), asked(rows, settings, 2)
    assert asked(rows, settings, 1) == one
    if name in RANDOM:
        assert one != other
    elif name in ("shf_cas", "kendall", "pacs", "mean_pacs"):
        assert one == other


@pytest.mark.parametrize("name", NAMES)
def test_equal_answers_are_never_compared(name: str) -> None:
    rows = [{**r, "completions": [f"answer {i // 2}" for i in range(len(r["pacs"]))]} for r in full_table()]
    chosen = asked(rows, SelectionConfig(strategy=name, budget=500, kendall_threshold="q0", pacs_threshold="q0"))
    assert chosen and all(first // 2 != second // 2 for _, first, second in chosen)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_that_say_nothing_are_never_asked_about(name: str) -> None:
    useless = {
        "degenerate": {"degenerate": True},
        "no-pacs": {"pacs": [math.nan] * 2, "kendall_distance": math.nan, "mean_abs_pacs": math.nan},
        "infinite": {"pacs": [math.inf, -math.inf]},
    }
    numbers = {"rewards": [math.nan, 9.0], "reward_variances": [math.nan, 9.0]}
    numbers["member_rewards"] = [[9.0, math.nan], [-9.0, 9.0]]
    useless |= {column: {column: values} for column, values in numbers.items() if column in SELECTABLE[name].needs}
    full = {"rewards": [5.0, 9.0], "reward_variances": [5.0, 9.0], "member_rewards": [[5.0, 9.0], [9.0, 5.0]]}
    more = [row(key, [5.0, -5.0], 1.0, **full) | change for key, change in useless.items()]
    rows = full_table()
    settings = SelectionConfig(strategy=name, budget=500)
    assert asked([*more, *rows], settings) == asked(rows, settings)
    with pytest.raises(UserError, match=rf"nothing from {len(more)} prompts \({len(more)} of them degenerate"):
        select(more, settings)


MISSING = [(name, column) for name in NAMES for column in (*SELECTABLE[name].needs, "pacs", "degenerate")]


@pytest.mark.parametrize(("name", "column"), MISSING)
def test_a_missing_column_is_named_with_what_makes_it(name: str, column: str) -> None:
    rows, settings = full_table(20), SelectionConfig(strategy=name)
    without = [{key: value for key, value in r.items() if key != column} for r in rows]
    makers = {
        "rewards": "shfcas score --reward_model MODEL adds it",
        "reward_variances": "score with an ensemble of reward models: shfcas train-reward --ensemble_size 5",
        "member_rewards": "score with an ensemble of reward models: shfcas train-reward --ensemble_size 5",
    }
    maker = makers.get(column, "shfcas score adds it")
    expected = f"strategy {name}: the table has no column {column}; {maker}"
    with pytest.raises(UserError, match=expected):
        select(without, settings)
    with pytest.raises(UserError, match=expected):
        columns_to_read(settings, without[0])
    # Where tables were joined, a column is null in some rows.
    with pytest.raises(UserError, match=f"^prompt 'p1', column {column}: null; {maker}"):
        select([*rows[1:], {**rows[1], column: None}], settings)


@pytest.mark.parametrize("column", ["rewards", "reward_variances", "member_rewards"])
def test_a_column_has_a_value_for_each_answer(column: str) -> None:
    name = next(n for n in NAMES if column in SELECTABLE[n].needs)
    values = [[1.0, 2.0]] * 3 if column == "member_rewards" else [1.0] * 3
    with pytest.raises(UserError, match=f"prompt 'a', column {column}: expected 2 values, got 3"):
        select([prompt("a", 2, **{column: values})], config(name))


@pytest.mark.parametrize(
    ("strategy", "change", "message"),
    [
        ("kendall", {"kendall_distance": None}, "column kendall_distance: null; shfcas score adds it"),
        ("random", {"pacs": None}, "column pacs: null; shfcas score adds it"),
        ("random", {"pacs": [1.0, None]}, "column pacs: a value is null"),
        ("reward_margin", {"rewards": [None, 1.0]}, "column rewards: a value is null"),
        ("bald", {"member_rewards": [[1.0, 2.0], [1.0, None]]}, "column member_rewards: a value is null"),
        ("bald", {"member_rewards": [[1.0, 2.0], None]}, "column member_rewards: a value is null"),
    ],
)
def test_a_null_names_its_prompt_and_its_column(strategy: str, change: dict[str, Any], message: str) -> None:
    sound = {"kendall_distance": 0.5, "rewards": [0.0, 1.0], "member_rewards": [[1.0, 2.0], [0.0, 1.0]]}
    rows = [
        {"prompt_id": name, "pacs": [1.0, -1.0], "mean_abs_pacs": 1.0, "degenerate": False, **sound} for name in "ab"
    ]
    rows[1] |= change
    with pytest.raises(UserError, match=f"^prompt 'b', {message}$"):
        select(rows, SelectionConfig(strategy, kendall_threshold=0))


def test_only_the_columns_that_are_needed_are_read() -> None:
    present = [*full_table(2)[1], "prompt", "topic"]
    assert columns_to_read(config("pacs"), present) == ["prompt_id", "pacs", "degenerate", "completions"]
    assert columns_to_read(config("bald"), present)[3:] == ["member_rewards", "completions"]
    spread = config("rso", diversity="k_centre")
    assert columns_to_read(spread, present)[3:] == ["rewards", "completions", "prompt"]
    assert columns_to_read(spread, [*present, "embeddings"])[3:] == ["rewards", "completions", "embeddings"]
    assert columns_to_read(config("random"), ["prompt_id", "pacs", "degenerate"]) == ["prompt_id", "pacs", "degenerate"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": "kendal"}, r"strategy: expected one of shf_cas, .*, got 'kendal'; did you mean kendall\?"),
        ({"strategy": "bold"}, r"strategy: .*, got 'bold'; did you mean bald\?"),
        (
            {"pairing": "extremes"},
            r"pairing: expected one of extreme, adjacent, random, all, got .* extreme\?",
        ),
        (
            {"diversity": "kcentre"},
            r"diversity: expected one of none, k_centre, got 'kcentre'; .* k_centre\?",
        ),
        ({"rso_samples": 1}, "rso_samples: expected at least 2, got 1; a pair needs two answers"),
        ({"rso_beta": 0.0}, "rso_beta: expected above 0, got 0"),
        ({"rso_beta": math.nan}, "rso_beta: expected above 0, got nan"),
        ({"diversity_pool": 0}, "diversity_pool: expected at least 1, got 0"),
        ({"false_discovery_rate": 0.0}, "false_discovery_rate: expected above 0 and below 1, got 0"),
        ({"false_discovery_rate": 1.0}, "false_discovery_rate: expected above 0 and below 1, got 1"),
        (
            {"pacs_threshold": "auto"},
            "pacs_threshold: .*, got 'auto'; auto is for kendall_threshold alone",
        ),
        ({"mean_pacs_threshold": "auto"}, "mean_pacs_threshold: .*, got 'auto'; auto is for kendall_threshold alone"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SelectionConfig(**values)


def test_every_pair_is_scored() -> None:
    for name in ("reward_margin", "least_margin", "reward_variance", "disagreement", "bald", "infomax"):
        for r in full_table(20)[1:]:
            assert wanted(name, r).keys() == set(combinations(range(len(r["pacs"])), 2))


def test_the_command_takes_every_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{**r, "prompt": f"about {i % 2}"} for i, r in enumerate(full_table(60))]
    reversed_orders = [row(f"r{i}", [2.0, 1.0, 0.5, -0.5, -1.0, -2.0], 1.0) for i in range(9)]
    pq.write_table(pa.Table.from_pylist([*rows, *reversed_orders]), "conflicts.parquet")
    flags = "--strategy kendall --kendall_threshold auto --false_discovery_rate 0.2 --pairing adjacent --budget 12"
    assert main(["select", *flags.split()]) == 0
    said = capsys.readouterr().out
    assert "comparisons: 12\n" in said and "\nfalse_discovery_rate: 0.2\nexpected_false_discovery_rate: 0.1" in said
    assert main(["select", *flags.split(), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["report"]["kendall"]["distances"]["6"] <= 1
    queue = [json.loads(line) for line in Path("queue.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(queue) == said["comparisons"] == 12 and {f"r{i}" for i in range(9)} & {q["prompt_id"] for q in queue}
    spread = "--strategy rso --rso_samples 2 --rso_beta 2 --diversity_pool 2 --budget 5"
    pq.write_table(pa.Table.from_pylist(rows), "conflicts.parquet")
    queues = []
    for diversity in ("none", "k_centre"):
        assert main(["select", *spread.split(), "--diversity", diversity]) == 0
        assert "prompts: 5\n" in capsys.readouterr().out
        queues.append(Path("queue.jsonl").read_text(encoding="utf-8"))
    assert queues[0] != queues[1]
    assert main(["select", "--pairing", "al"]) == 2
    assert "pairing: expected one of extreme, adjacent, random, all, got 'al'; did you mean all?" in (
        capsys.readouterr().err
    )
