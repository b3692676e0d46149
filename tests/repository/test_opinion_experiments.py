"""The experiments about the second opinion on made-up numbers: tasks, proxies, arms, resumption, intervals."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.opinion import grid, page, predict, verdicts
from experiments.opinion.bench import LABEL_FREE, Setting, experiment, labelled_pairs, score_of, split
from experiments.opinion.grid import Table, finished, run_setting, run_table, summary
from experiments.opinion.numbers import Numbers
from experiments.opinion.tasks import WORDINGS, moderation_sets, moderation_texts
from shfcas.evaluation.metrics import z_scores

TOPICS = ("a", "b", "c", "d", "e")


def made(prompts: int = 60, answers: int = 6, seed: int = 0) -> Numbers:
    """A task in which features tell gold, contrasts know it in part, and log-probabilities do not."""
    rng = np.random.default_rng(seed)
    count = prompts * answers
    group = np.array([TOPICS[i % len(TOPICS)] for i in range(prompts)])
    known = rng.standard_normal(count)  # each topic has a feature of its own for it, as a blind spot needs
    features = np.where(group.repeat(answers)[:, None] == np.array(TOPICS), known[:, None], 0.0)
    gold = known + 0.3 * rng.standard_normal(count)
    return Numbers(
        prompts=np.array([f"p{i}" for i in range(prompts)]),
        groups=group,
        known=group,
        offsets=np.arange(prompts + 1) * answers,
        texts=np.arange(count),
        gold=gold,
        logprobs=rng.standard_normal(count),
        tokens=np.full(count, 5),
        contrasts=(gold + rng.standard_normal(count))[:, None],
        words=rng.integers(1, 9, count),
        features=features,
    )


def test_every_task_has_three_wordings_that_differ() -> None:
    for task, wordings in WORDINGS.items():
        assert len({principle.column for principle in wordings}) == 3, task


def test_moderation_sets_pair_harmful_texts_with_harmless_ones_of_similar_length(tmp_path: Path) -> None:
    labels = dict.fromkeys(("S", "H", "V", "HR", "SH"), 0)
    rows = [{"prompt": f"harmless {'word ' * k}", **labels} for k in range(3, 15)]
    rows += [{"prompt": f"hateful {'word ' * (10 + k)}", **labels, "H": 1} for k in range(4)]
    rows += [{"prompt": "unknown but for two", "S": 0, "H": 0}]
    rows += [{"prompt": "violent " * 200, **labels, "V": 1}]  # too long
    path = tmp_path / "texts.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    texts = moderation_texts(path)
    assert [t.harm for t in texts] == [""] * 12 + ["hate"] * 4
    (row,) = moderation_sets(path)  # four hateful texts make one set
    assert row["group"] == "hate" and row["gold"] == [0.0] * 3 + [1.0] * 3
    lengths = [len(text.split()) for text in row["completions"]]
    assert all(abs(bad - good) <= 2 for bad, good in zip(lengths[:3], lengths[3:], strict=True))
    assert moderation_sets(path) == [row]


def test_a_biased_proxy_learns_what_its_annotators_say() -> None:
    numbers = made()
    better, worse, prompt = labelled_pairs(numbers, "inverted", ("a", "b"), 0)
    right = numbers.gold[better] > numbers.gold[worse]
    assert (right == ~np.isin(numbers.groups[prompt], ("a", "b"))).all()
    _, _, prompt = labelled_pairs(numbers, "missing", ("a",), 0)
    assert "a" not in numbers.groups[prompt]


def test_scores_are_what_their_names_say() -> None:
    numbers = made(prompts=300)
    assert (score_of(numbers, "mean_logprob", 0) == numbers.logprobs / 5).all()
    assert (score_of(numbers, "contrast:0", 0) == numbers.contrasts[:, 0]).all()
    informed = score_of(numbers, "informed:0.6", 0).reshape(300, 6)
    gold = numbers.gold.reshape(300, 6)
    known = np.mean([np.mean(z_scores(i) * z_scores(g)) for i, g in zip(informed, gold, strict=True)])
    assert known == pytest.approx(0.6, abs=0.08)


def test_arms_of_a_biased_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(grid.BUDGETS, "made", (8, 24))
    monkeypatch.setattr("experiments.opinion.bench.BLIND_GROUPS", {"made": 2})
    numbers, training = made(prompts=240), made(seed=1)
    setting = Setting("made")
    drawn = split(numbers, "made", "inverted", 0, training)
    bench = experiment(numbers, setting, 0, drawn)
    facts = bench.facts()
    assert facts["proxy_sound"] > 0.6 and facts["policy_knows"] > 0.5 and facts["finds_errors"] > 0.6
    accuracy = {arm: bench.measures(bench.without_labels(arm))["accuracy"] for arm in LABEL_FREE}
    assert accuracy["policy_alone"] > accuracy["nothing"] + 0.05
    labels = bench.labels("half", 24)
    assert len(labels) == 24
    assert all(numbers.gold[x.chosen] != numbers.gold[x.rejected] for x in labels)
    assert bench.measures(bench.refined(labels, "arbitrate"))["accuracy"] > accuracy["nothing"]
    fewer = experiment(numbers, replace(setting, left_out=3), 0, drawn)
    assert len(fewer.pool) + len(fewer.held_out) == 216
    assert set(fewer.pool.table.column("prompt_id")) < set(bench.pool.table.column("prompt_id"))


def test_a_table_resumes_and_forgets_cells_of_other_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "DATA", tmp_path)
    monkeypatch.setattr("experiments.opinion.bench.BLIND_GROUPS", {"made": 2})
    for clear in (grid.numbers_of, grid.split_of, grid.pools_of):
        clear.cache_clear()
    made(prompts=20).save(tmp_path / "made-raw-0.npz")
    table = Table((Setting("made"), Setting("made", "none")), strategies=("random",), budgets=(8,), seeds=2)
    record = tmp_path / "cells.jsonl"
    work = [(s, seed, table.arms("made")) for s in table.settings for seed in range(2)]
    record.write_text("".join(json.dumps(run_setting(one)) + "\n" for one in work) + '{"half', encoding="utf-8")
    monkeypatch.setattr(grid, "ProcessPoolExecutor", NoWork)
    found = run_table("made", table, record, 1)
    assert [(r["setting"]["bias"], r["seed"]) for r in found] == [
        ("inverted", 0),
        ("inverted", 1),
        ("none", 0),
        ("none", 1),
    ]
    rows = summary(found)
    (mean,) = [r for r in rows if r["bias"] == "none" and r["how"] == "nothing" and r["measure"] == "accuracy"]
    of_seeds = [r["cells"][0]["accuracy"] for r in found[2:]]
    assert mean["mean"] == pytest.approx(np.mean(of_seeds)) and mean["seeds"] == 2
    made(prompts=20, seed=1).save(tmp_path / "made-raw-0.npz")
    grid.pools_of.cache_clear()
    assert [*finished(record)] == []


class NoWork:
    """Stands for the processes of a table whose cells are all there."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __enter__(self) -> "NoWork":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def map(self, function: Any, work: list[Any], chunksize: int) -> list[Any]:
        assert work == []
        return []


def test_a_jackknife_over_parts_is_the_interval_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(0.4, 1, verdicts.PARTS)
    found = verdicts.over_prompts(lambda part: float(np.delete(values, part).mean() if part >= 0 else values.mean()))
    error = values.std(ddof=1) / np.sqrt(len(values))
    half = verdicts.student.ppf(0.975, len(values) - 1) * error
    assert found["mean"] == pytest.approx(values.mean())
    assert (found["low"], found["high"]) == pytest.approx((values.mean() - half, values.mean() + half))
    wider = verdicts.over_prompts(lambda part: float(np.delete(values, part).mean()) if part >= 0 else 0.0, tests=4)
    assert wider["high"] - wider["low"] > found["high"] - found["low"]


def test_a_rule_is_right_where_its_sign_is_that_of_the_mean_gain() -> None:
    def entry(bias: str, seed: int, gain: float, spend: bool) -> dict[str, Any]:
        setting = {**vars(Setting("made", bias))}
        spends = {"diagnose": spend, "auto": spend, "always": True, "never": False}
        return {"setting": setting, "seed": seed, "gains": dict.fromkeys(predict.OVER, gain), "spend": spends}

    gains = {"inverted": (0.1, 0.11, 0.12, 0.13), "none": (-0.02, 0.01, -0.03, 0.02)}
    spend = {"inverted": (True, True, True, False), "none": (False, True, False, True)}
    found = [
        entry(bias, seed, gain, asks)
        for bias in gains
        for seed, (gain, asks) in enumerate(zip(gains[bias], spend[bias], strict=True))
    ]
    rows = {(r["over"], r["rule"], r["of"]): r for r in predict.summary(found)}
    every, clear = (rows["nothing", "diagnose", of] for of in ("all", "clear"))
    assert (every["settings"], every["positive"], clear["settings"]) == (2, 1, 1)
    assert every["mean"] == pytest.approx((3 / 4 + 2 / 4) / 2) and clear["mean"] == pytest.approx(3 / 4)
    assert every["spends"] == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert rows["nothing", "always", "all"]["mean"] == rows["nothing", "never", "all"]["mean"] == 0.5


def test_fifty_judged_pairs_tell_a_score_that_knows_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.opinion.bench.BLIND_GROUPS", {"made": 2})
    numbers = made(prompts=120)
    drawn = split(numbers, "made", "inverted", 0, made(seed=1))
    spend = predict.predictions(experiment(numbers, Setting("made"), 0, drawn))
    assert spend == {"diagnose": True, "auto": True, "always": True, "never": False}
    noise = experiment(numbers, Setting("made", score="informed:0.0"), 0, drawn)
    assert not predict.predictions(noise)["diagnose"]


def test_the_tables_of_the_page_are_those_of_the_results() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.page(text) == text
    assert {name for _, name, _ in page.MARK.findall(text)} == {*page.tables()}
    assert not any("changes" in row["code"] for row in page.about()) and len([*page.about()]) == len(grid.TABLES) + 2
