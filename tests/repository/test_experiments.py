"""The experiments on made-up numbers: biases, benches, rounds, resumption, sampling with a shared prompt."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from experiments import figure, page, policies, quick
from experiments.annotators import BIASES, SafetyAnnotator, flipped_labels
from experiments.arms import PARTS, Setting, experiment, in_rounds, key, policy_columns, some_answers
from experiments.features import Crossed
from experiments.generate import logprobs_of, sample
from experiments.grid import PLANS, RESULTS, Plan, run_plan, tables, write_table
from experiments.loaders import Exchange
from experiments.numbers import FEATURES, Numbers
from shfcas.compare import Cell
from shfcas.compare.config import CompareConfig
from shfcas.evaluation.metrics import z_scores
from shfcas.models.loading import load_policy
from shfcas.utils.config import build, read_yaml
from shfcas.utils.files import read_json, write_json
from tests.support.made_numbers import made

BLIND = np.arange(1000) % 2 == 0
WORDS = np.where(np.arange(1000) % 5 < 2, -3, 2)


def test_biases() -> None:
    def outcome(bias: str, strength: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        return flipped_labels(bias, strength, BLIND, WORDS, 0)

    for bias in BIASES:
        keep, turn = outcome(bias, 0.3)
        again = outcome(bias, 0.3)
        assert (keep == again[0]).all() and (turn == again[1]).all(), bias
    assert (outcome("inverted")[1] == BLIND).all() and outcome("inverted")[0].all()
    assert (outcome("missing")[0] == ~BLIND).all() and not outcome("missing")[1].any()
    assert (outcome("length")[1] == (WORDS < 0)).all()
    assert outcome("noise", 0.3)[1].mean() == pytest.approx(0.3, abs=0.05)
    both = outcome("length_noise", 0.0)[1]
    assert both.mean() == pytest.approx(0.15, abs=0.04)
    keep, turn = outcome("none")
    assert keep.all() and not turn.any()
    with pytest.raises(ValueError, match="unknown bias 'other', one of none, inverted"):
        outcome("other")


def test_answers_are_taken_from_both_temperatures() -> None:
    numbers = made(prompts=5, answers=8)
    assert (some_answers(numbers, 4, "low").temperature == 0.7).all()
    assert (some_answers(numbers, 4, "high").temperature == 1.1).all()
    mixed = some_answers(numbers, 4, "mixed")
    assert mixed.offsets.tolist() == [0, 4, 8, 12, 16, 20]
    assert mixed.texts[:8].tolist() == [0, 1, 4, 5, 8, 9, 12, 13]
    assert np.array_equal(mixed.features, numbers.features[mixed.texts])
    assert some_answers(numbers, 8, "mixed").texts.tolist() == list(range(40))


def test_an_informed_score_has_its_correlation_with_gold() -> None:
    numbers = made(prompts=400)
    columns, name = policy_columns(numbers, "informed:0.6", 0)
    bounds = list(zip(numbers.offsets, numbers.offsets[1:], strict=False))
    found = [np.mean(z_scores(columns["logprobs"][a:b]) * z_scores(numbers.gold[a:b])) for a, b in bounds]
    assert name == "logprob" and np.mean(found) == pytest.approx(0.6, abs=0.05)
    columns, name = policy_columns(numbers, "mean_logprob", 0)
    assert name == "mean_logprob" and columns["num_tokens"] is numbers.tokens
    columns, name = policy_columns(numbers, "base_logprob", 0)
    assert name == "logprob" and columns["logprobs"] is numbers.reference
    columns, name = policy_columns(numbers, "tuned:30", 0)
    assert name == "logprob_ratio" and columns["reference_logprobs"] is numbers.reference
    assert columns["logprobs"].tolist() == numbers.tuned[:, 1].tolist()


def test_inverted_groups_are_a_blind_spot_that_informed_conflicts_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.arms.BLIND_GROUPS", {"made": 2})
    numbers, gain = made(), []
    for seed in range(3):
        informed = experiment(numbers, Setting("made", "inverted", policy="informed:0.6"), seed, committee=False)
        facts = informed.facts
        assert facts["proxy_accuracy_blind"] < 0.3 and facts["proxy_accuracy_elsewhere"] > 0.7
        assert facts["kendall_finds_blind"] > 0.9
        one, other = informed.run("shf_cas", 20), informed.run("random", 20)
        assert one["comparisons"] == other["comparisons"] == one["labels"] == 20
        gain.append(one["pair_accuracy|(blind spot)"] - other["pair_accuracy|(blind spot)"])
    assert min(gain) > 0
    sound = experiment(numbers, Setting("made", "none", policy="informed:0.6"), 0, committee=False)
    assert sound.facts["proxy_accuracy_blind"] > 0.7


def test_own_prompts_of_a_proxy_are_apart() -> None:
    numbers = made(own=True)
    found = experiment(numbers, Setting("helpfulness", "noise", 0.2), 0)
    used = len(found.bench.pool) + len(found.bench.held_out)
    assert used == 36  # of 60 prompts, 24 are the proxy's
    assert found.run("bald", 10)["comparisons"] == 10


def test_rounds_ask_each_pair_once_and_the_same_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.arms.BLIND_GROUPS", {"made": 2})
    bench = experiment(made(), Setting("made", "inverted", policy="informed:0.6"), 0, committee=False).bench
    queues = {}
    for rounds in (1, 3):
        queue, labels = in_rounds(bench, Cell("shf_cas", 20, 0), rounds)
        assert len(queue) == len({key(c) for c in queue}) == len(labels) == 20
        queues[rounds] = queue
    assert queues[1][:6] == queues[3][:6]  # the first round knows no more
    assert {key(c) for c in queues[1]} != {key(c) for c in queues[3]}


def test_a_killed_grid_goes_on_to_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.arms.BLIND_GROUPS", {"made": 2})
    plan = Plan((Setting("made", "inverted"), Setting("made", "none")), ("random", "shf_cas"), {"made": (10,)})
    tasks, record = {"made": made(prompts=24)}, tmp_path / "cells.jsonl"
    whole = run_plan("made", plan, tasks, 3, record)
    lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 6
    record.write_text("".join(lines[:3]) + lines[3][:50], encoding="utf-8")
    assert str(run_plan("made", plan, tasks, 3, record)) == str(whole)  # so that NaN equals NaN
    fewer = Plan(plan.settings[:1], ("random",), {"made": (5,)})  # cells of another plan do not count
    assert [c["budget"] for r in run_plan("made", fewer, tasks, 1, record).values() for c in r["cells"]] == [0, 5]
    means, facts = tables({at: result for at, result in whole.items() if at[0].bias == "inverted"})
    row = next(r for r in means if (r["strategy"], r["budget"], r["metric"]) == ("shf_cas", 10, "pair_accuracy"))
    assert row["seeds"] == 3 and row["low"] <= row["mean"] <= row["high"]
    assert row["vs_random_better"] + row["vs_random_worse"] <= 3
    assert {r["metric"] for r in facts} >= {"policy_knows", "proxy_accuracy_blind"}
    write_table(tmp_path / "t.csv", means)
    assert len((tmp_path / "t.csv").read_text(encoding="utf-8").splitlines()) == len(means) + 1


def test_the_table_of_policies_has_a_row_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluated(folder: str, gold: float) -> None:
        metrics = {
            "gold_reward": {"mean": gold},
            "win_rate": {"mean": 0.6},
            "kl": 1.5,
            "mean_length": 12.5,
            "pair_accuracy": 0.5,
        }
        (tmp_path / folder).mkdir(parents=True)
        write_json(tmp_path / folder / "metrics.json", metrics | {"mean_abs_pacs": 1.0})

    evaluated("round-0", 0.1)
    for seed in range(2):
        evaluated(f"policies/random/budget-100/seed-{seed}", 0.2 + seed)
        evaluated(f"policies/none/budget-0/seed-{seed}", 0.3 + seed)
    monkeypatch.setattr("sys.argv", ["policies", "--run", str(tmp_path), "--output", str(tmp_path)])
    policies.main()
    assert (tmp_path / "ppo.csv").read_text(encoding="utf-8").splitlines() == [
        "strategy,budget,seed,gold_reward,win_rate,kl,length,pair_accuracy",
        "before,0,0,0.1,0.6,1.5,12.5,0.5",
        "none,0,0,0.3,0.6,1.5,12.5,0.5",
        "none,0,1,1.3,0.6,1.5,12.5,0.5",
        "random,100,0,0.2,0.6,1.5,12.5,0.5",
        "random,100,1,1.2,0.6,1.5,12.5,0.5",
    ]
    assert read_json(tmp_path / "about.json")["ppo"]["seeds"] == 2
    monkeypatch.setattr("experiments.figure.RESULTS", tmp_path)
    before, none, random = page.policies()
    assert before["gold reward"] == "0.100" and before["minus `random`"] == random["minus `random`"] == ""
    assert none["per seed"] == "0.300, 1.300" and none["minus `random`"] == "+0.100 [+0.100, +0.100]"


def test_numbers_on_the_disk(tmp_path: Path) -> None:
    numbers = made(prompts=6)
    numbers.save(tmp_path / "whole.npz")
    again = Numbers.load(tmp_path / "whole.npz")
    for name, values in vars(numbers).items():
        read = getattr(again, name)
        assert np.allclose(read, values, rtol=1e-3) if name in FEATURES else np.array_equal(read, values), name
    numbers.quantised(tmp_path / "small.npz")
    small = Numbers.load(tmp_path / "small.npz")
    assert small.features == pytest.approx(numbers.features, abs=0.026)
    assert small.gold == pytest.approx(numbers.gold, rel=1e-3)
    assert np.array_equal(small.texts, numbers.texts)


def test_crossed_features_see_prompt_and_answer_together() -> None:
    rng = np.random.default_rng(0)
    prompts, answers = rng.standard_normal((2, 500, 384))
    crossed = Crossed(prompts, answers)
    found = crossed(prompts, answers)
    assert found.shape == (500, 96 + 8 * 16) and found.std(0) == pytest.approx(np.ones(224), abs=1e-3)
    other = crossed(prompts[::-1], answers)
    assert np.array_equal(found[:, :96], other[:, :96]) and not np.allclose(found[:, 96:], other[:, 96:])


def test_safety_annotator_learns_words_and_meanings() -> None:
    rng = np.random.default_rng(0)
    exchanges = [Exchange("say it", word, "any", word == "kind words") for word in ("kind words", "cruel words") * 20]
    vectors = rng.standard_normal((40, 4))
    annotator = SafetyAnnotator(exchanges, vectors, vectors)
    kind, cruel = annotator(["say it"] * 2, ["kind words", "cruel words"], vectors[:2], vectors[:2])
    assert kind > 0 > cruel


@pytest.fixture
def loaded(policy: str):
    return load_policy(policy)


def test_sampling_with_a_shared_prompt(loaded) -> None:
    model, tokenizer = loaded
    texts = ("one two three", "a", "what is it that you want to know of me")
    rows = [{"prompt_id": str(i), "prompt": text, "topic": i} for i, text in enumerate(texts)]
    found = sample(model, tokenizer, rows, (0.7, 1.0, 1.5, 1.5), 6, seed=3)
    assert [row["topic"] for row in found] == [0, 1, 2]
    for row in found:
        prompt = tokenizer(row["prompt"])["input_ids"]
        for tokens, logprob in zip(row["tokens"], row["logprobs"], strict=True):
            with torch.inference_mode():
                scores = model(torch.tensor([prompt + tokens])).logits[0].log_softmax(-1)
            alone = sum(scores[len(prompt) + k - 1, token].item() for k, token in enumerate(tokens))
            assert logprob == pytest.approx(alone, abs=1e-3)
    again = logprobs_of(model, tokenizer, rows, [row["tokens"] for row in found])
    for row, values in zip(found, again, strict=True):
        assert values == pytest.approx(row["logprobs"], abs=1e-3)
    assert sample(model, tokenizer, rows[1:2], (0.7, 1.0, 1.5, 1.5), 6, seed=3)[0]["tokens"] == found[1]["tokens"]
    assert len({tuple(t) for row in found for t in row["tokens"]}) > 6


def test_answers_that_end_early_leave_the_batch(loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded
    ends = set(range(0, 320, 4))  # a quarter of all tokens end an answer
    monkeypatch.setattr("experiments.generate.end_token_ids", lambda model, tokenizer: ends)
    rows = [{"prompt_id": str(i), "prompt": f"word {i}"} for i in range(6)]
    found = sample(model, tokenizer, rows, (1.0,) * 6, 12, seed=0)
    lengths = [count for row in found for count in row["num_tokens"]]
    assert len(set(lengths)) > 4 and max(lengths) > 6
    for row in found:
        for tokens, done in zip(row["tokens"], row["finished"], strict=True):
            assert (tokens[-1] in ends) == done and not ends.intersection(tokens[:-1])
            assert done or len(tokens) == 12
    again = logprobs_of(model, tokenizer, rows, [row["tokens"] for row in found])
    for row, values in zip(found, again, strict=True):
        assert values == pytest.approx(row["logprobs"], abs=1e-3)


def test_ppo_experiment_is_a_comparison_that_fits_together() -> None:
    config = build(CompareConfig, read_yaml(RESULTS.parent / "ppo.yaml"))
    assert config.ppo == config.strategies and config.ppo_seeds == 4


def test_committed_quick_table_is_made_again_to_the_digit(tmp_path: Path) -> None:
    quick.make(tmp_path / "quick.csv")
    assert (tmp_path / "quick.csv").read_text(encoding="utf-8") == quick.TABLE.read_text(encoding="utf-8")
    assert quick.DATA.stat().st_size < 1_000_000


def test_quick_data_are_a_part_of_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "DATA", tmp_path / "quick.npz")
    monkeypatch.setattr(quick, "PROMPTS", 10)
    monkeypatch.setattr(quick, "PAIRS", 50)
    whole = made(prompts=30, answers=16)
    whole.save(tmp_path / "numbers.npz")
    quick.build(tmp_path / "numbers.npz")
    small = Numbers.load(quick.DATA)
    assert np.diff(small.offsets).tolist() == [8] * 10 and len(small.pairs) == len(small.pair_groups) == 50
    for place, prompt in enumerate(small.prompts):
        at = small.texts[small.offsets[place] : small.offsets[place + 1]]
        start = 16 * whole.prompts.tolist().index(prompt)
        assert at.tolist() == [start + k for k in (0, 1, 2, 3, 8, 9, 10, 11)]


def test_figure_is_drawn_from_the_committed_tables() -> None:
    assert figure.draw().lstrip().startswith("<?xml") and figure.FIGURE.exists()


def test_tables_of_the_page_are_those_of_the_results() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.page(text) == text
    assert {name for _, name, _ in page.MARK.findall(text)} == {*page.tables(), "about"}
    entries = read_json(page.ABOUT)
    assert set(entries) == {*PLANS, "ppo"} and not any("changes" in entry["commit"] for entry in entries.values())


def test_parts_of_the_prompts_are_left_out_and_nothing_else_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.arms.BLIND_GROUPS", {"made": 2})
    numbers = made()

    def prompts(left_out: int) -> tuple[set[str], set[str]]:
        setting = Setting("made", "inverted", left_out=left_out)
        bench = experiment(numbers, setting, 1, committee=False).bench
        pool, held_out = ({row["prompt_id"] for row in part.rows} for part in (bench.pool, bench.held_out))
        return pool, held_out

    pool, held_out = prompts(-1)
    gone = []
    for part in range(PARTS):
        fewer, measured = prompts(part)
        assert fewer <= pool and measured <= held_out
        gone += [*(pool - fewer), *(held_out - measured)]
    assert sorted(gone) == sorted(pool | held_out)


def test_first_and_later_prompts_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.arms.BLIND_GROUPS", {"made": 2})
    monkeypatch.setattr("experiments.arms.FIRST", {"made": 24})
    numbers, used = made(), {}
    for part in ("all", "first", "later"):
        bench = experiment(numbers, Setting("made", "inverted", prompts=part), 1, committee=False).bench
        used[part] = [row["prompt_id"] for side in (bench.pool, bench.held_out) for row in side.rows]
    assert sorted(used["first"]) == numbers.prompts[:24].tolist()
    assert sorted(used["later"]) == numbers.prompts[24:].tolist()
    assert sorted(used["all"]) == numbers.prompts.tolist()


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).standard_normal(20)
    without = [float(np.delete(values, i).mean()) for i in range(20)]
    low, high = page.jackknife(float(values.mean()), without)
    expected = student.interval(0.95, 19, values.mean(), values.std(ddof=1) / np.sqrt(20))
    assert (low, high) == pytest.approx(expected)
