"""`shfcas compare` on tiny models: from a configuration to tables and a page, killed, resumed and grown."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shfcas.cli import main
from shfcas.compare import Cell
from shfcas.compare.config import CompareConfig
from shfcas.compare.frozen import FrozenModel
from shfcas.compare.heads import Head
from shfcas.compare.page import threats
from shfcas.compare.run import compare
from shfcas.compare.work import RunWork
from shfcas.data.candidates import read_candidates
from shfcas.data.preferences import Preference
from shfcas.models.loading import load_reward_model, save_model
from shfcas.rewards.scorers import load_scorer
from shfcas.utils.config import build
from shfcas.utils.errors import UsageError, UserError
from shfcas.utils.files import read_json
from shfcas.utils.parquet import read_parquet
from tests.support import tiny

SHORT = {"num_completions": 4, "temperature": 1.0, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def values(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A configuration of seconds."""
    folder = tmp_path_factory.mktemp("values")
    pairs = [
        {"prompt": row["prompt"], "chosen": "a good day", "rejected": f"bad {i}"}
        for i, row in enumerate(tiny.prompts(8))
    ]
    return {
        "policy": tiny_models["policy"],
        "reward_model": tiny_models["reward_model"],
        "gold": "tests.support.tiny:letter_reward",
        "prompts": tiny.write_lines(folder / "prompts.jsonl", tiny.prompts(10)),
        "eval_prompts": tiny.write_lines(folder / "held_out.jsonl", tiny.held_out_prompts(6)),
        "preferences": tiny.write_lines(folder / "pairs.jsonl", pairs),
        "sampling": SHORT,
        "selection": {"kendall_threshold": "q0", "pacs_threshold": "q0"},
        "evaluation": {"sampling": SHORT, "group_by": "topic"},
        "blind": ["travel"],
        "strategies": ["random", "shf_cas"],
        "budgets": [3, 6],
        "seeds": 2,
    }


@pytest.fixture(scope="module")
def done(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("done") / "compared"
    assert compare(build(CompareConfig, {**values, "output": str(folder)})) == folder / "report.html"
    return folder


def results(folder: Path) -> list[dict]:
    return read_parquet(folder / "results.parquet").to_pylist()


def test_a_comparison_leaves_results_tables_and_a_page(done: Path) -> None:
    rows = results(done)
    cells = {(r["strategy"], r["budget"], r["seed"]) for r in rows}
    assert len(cells) == 2 * (1 + 2 * 2) and ("none", 0, 1) in cells
    metrics = {(r["metric"], r["group"]) for r in rows}
    assert {("pair_accuracy", ""), ("pair_accuracy", "travel"), ("pair_accuracy", "(blind spot)")} <= metrics
    assert {r["value"] for r in rows if r["metric"] == "comparisons" and r["strategy"] == "random"} == {3.0, 6.0}
    assert {p.name for p in (done / "tables").iterdir()} == {
        "means.csv", "means.md", "tests.csv", "tests.md", "seconds.csv",
    }  # fmt: skip
    page = (done / "report.html").read_text()
    for part in (
        "Set-up",
        "Label-budget curves",
        "Paired tests",
        "Means",
        "Does conflict find errors?",
        "Threats",
        "SHA-256",
    ):
        assert part in page
    assert page.count("<svg") == 2 and "2 seeds cannot give" in page
    assert not re.search(r"<script|<link|<img|<iframe|src=|@import", page)
    assert all(address.startswith("#") for address in re.findall(r'href="([^"]*)"', page))


def test_the_frozen_head_is_the_reward_model(done: Path) -> None:
    table = read_candidates(done / "pool.parquet")
    features, head = (np.load(done / "features" / f"{name}.npy") for name in ("pool", "head"))
    difference = features @ head - table.values("rewards").numpy()
    assert np.ptp(difference) < 1e-4  # the head's bias is the same for all


def test_killed_and_resumed_is_the_same(
    values: dict[str, Any], done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build(CompareConfig, {**values, "output": str(tmp_path / "again")})
    run, calls = RunWork.__call__, []

    def killed(work: RunWork, cell: Cell) -> dict:
        calls.append(cell)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return run(work, cell)

    monkeypatch.setattr(RunWork, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        compare(config)
    compare(config)
    assert len(calls) == 10 + 1
    assert results(tmp_path / "again") == results(done)
    for name in ("means.csv", "means.md", "tests.csv", "tests.md"):
        assert (tmp_path / "again" / "tables" / name).read_text() == (done / "tables" / name).read_text()
    compare(config)  # once more: nothing is left to run
    assert len(calls) == 10 + 1


def test_a_grid_may_grow_and_what_it_stands_on_may_not_change(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config, output = tmp_path / "config.json", str(tmp_path / "grown")
    config.write_text(json.dumps({**values, "output": output, "seeds": 1, "budgets": [3]}))
    assert main(["compare", str(config)]) == 0
    first = results(Path(output))
    assert main(["compare", str(config), "--seeds", "2", "--budgets", "3,6", "--strategies", "random,mean_pacs"]) == 0
    rows = results(Path(output))
    assert {r["strategy"] for r in rows} == {"none", "random", "mean_pacs"}
    kept = [r for r in first if r["strategy"] == "random"]
    assert kept and all(r in rows for r in kept)
    assert len((Path(output) / "cells.jsonl").read_text().splitlines()) == 1 + 3 + 8
    page = (Path(output) / "report.html").read_text()
    capsys.readouterr()
    assert main(["report", "--run", output]) == 0
    assert capsys.readouterr().out == f"report: {output}/report.html\n"
    assert (Path(output) / "report.html").read_text() == page
    assert main(["compare", str(config), "--l2", "3"]) == 1
    assert "(settings.l2: 10.0 -> 3.0); undo that" in capsys.readouterr().err


def test_stale_stages_are_made_again_only_with_approval(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config, output = tmp_path / "config.json", tmp_path / "changed"
    config.write_text(json.dumps({**values, "output": str(output), "seeds": 1, "budgets": [3]}))
    assert main(["compare", str(config)]) == 0
    before, cells = results(output), (output / "cells.jsonl").read_text().splitlines()
    assert main(["compare", str(config), "--sampling.temperature", "0.7"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("shfcas compare: sampling.temperature: 1.0 -> 0.7; made again: round-1/candidates.parquet,")
    assert "pool.parquet, features" in error and error.endswith("or make them again with --yes")
    assert results(output) == before
    assert main(["compare", str(config), "--sampling.temperature", "0.7", "--yes"]) == 0
    again = (output / "cells.jsonl").read_text().splitlines()
    assert len(again) == len(cells) and again[0] != cells[0]
    assert results(output) != before and "yes" not in read_json(output / "manifest.json")["config"]


def test_the_full_model_is_refined_with_the_same_labels(values: dict[str, Any], tmp_path: Path) -> None:
    reward = {"learning_rate": 1e-2, "num_train_epochs": 1}
    settings = {"refine": "full", "reward": reward, "seeds": 1, "budgets": [4], "jobs": 1}
    values = {**values, "strategies": ["random"]}
    full, head = tmp_path / "full", tmp_path / "head"
    compare(build(CompareConfig, {**values, **settings, "output": str(full)}))
    assert not list((full / ".cells").iterdir())  # no model is kept
    compare(build(CompareConfig, {**values, "seeds": 1, "budgets": [4], "output": str(head)}))
    asked = ("comparisons", "labels", "errors_found", "blind_share")
    assert [r for r in results(full) if r["metric"] in asked] == [r for r in results(head) if r["metric"] in asked]
    found = [r["value"] for r in results(full) if r["metric"] == "mean_abs_pacs"]
    assert len(set(found)) == 2  # none and random: each has learned something else


@pytest.mark.parametrize("refine", ["head", "full"])
def test_cells_may_be_refined_on_soft_labels(refine: str, values: dict[str, Any], tmp_path: Path) -> None:
    reward = {"learning_rate": 1e-2, "num_train_epochs": 1, "refine": "arbitrate", "held_out": 0}
    reward["second_opinion"] = {"group_by": "topic", "pairs_per_prompt": 2}
    config = {"refine": refine, "reward": reward, "seeds": 1, "budgets": [4], "jobs": 1, "strategies": ["random"]}
    compare(build(CompareConfig, {**values, **config, "output": str(tmp_path / "soft")}))
    rows = results(tmp_path / "soft")
    conflict = [r["value"] for r in rows if r["metric"] == "mean_abs_pacs"]
    assert len(set(conflict)) == 2  # without labels, the second opinion; with them, another trust
    plain = {**config, "reward": {**reward, "refine": "labels"}}
    compare(build(CompareConfig, {**values, **plain, "output": str(tmp_path / "pairs")}))
    others = [r["value"] for r in results(tmp_path / "pairs") if r["metric"] == "mean_abs_pacs"]
    assert not {*others} & {*conflict}


def test_policies_follow_the_refined_rewards(values: dict[str, Any], tmp_path: Path) -> None:
    ppo = {"num_rollouts": 1, "rollout_batch_size": 4, "mini_batch_size": 2, "num_ppo_epochs": 1}
    ppo |= {"learning_rate": 1e-2, "max_completion_length": 6}
    config = {**values, "seeds": 1, "budgets": [4], "ppo": ["shf_cas"], "rl": {"ppo": ppo}}
    folder = tmp_path / "policies"
    compare(build(CompareConfig, {**config, "output": str(folder)}))
    rows = [r for r in results(folder) if r["metric"].startswith("policy_")]
    assert {(r["strategy"], r["budget"]) for r in rows} == {("none", 0), ("shf_cas", 4)}
    assert {r["metric"] for r in rows} == {"policy_gold_reward", "policy_win_rate", "policy_kl"}
    cell = folder / "policies" / "shf_cas" / "budget-4" / "seed-0"
    measured = {r["metric"]: r["value"] for r in rows if r["strategy"] == "shf_cas"}
    assert measured["policy_kl"] == read_json(cell / "metrics.json")["kl"] != 0
    accuracy = read_json(cell / "metrics.json")["pair_accuracy"]  # of the saved model, measured as every run does
    (same,) = [
        r["value"]
        for r in results(folder)
        if (r["metric"], r["group"], r["strategy"]) == ("pair_accuracy", "", "shf_cas")
    ]
    assert accuracy == pytest.approx(same)
    longer = {**config, "rl": {"ppo": {**ppo, "max_completion_length": 7}}, "output": str(folder)}
    with pytest.raises(
        UsageError, match=r"rl\.ppo\.max_completion_length: 6 -> 7; made again: policies/none/.*/policy, "
    ):
        compare(build(CompareConfig, longer))


def test_an_ensemble_and_a_cost_model_are_taken_apart_and_put_together(tmp_path: Path) -> None:
    folders = [tiny.save_reward_model(tmp_path / "ensemble" / f"member-{k}", seed=k) for k in range(2)]
    (tmp_path / "ensemble" / "ensemble.json").write_text(json.dumps({"members": ["member-0", "member-1"]}))
    name, texts = str(tmp_path / "ensemble"), ["a good day", "the train was late", "bad"]
    model = FrozenModel(name)
    features = model.features(["how was it?"] * 3, texts)
    assert features.shape == (3, 64)
    rewards = np.array(load_scorer(name)(prompts=["how was it?"] * 3, completions=texts))
    assert np.ptp(features @ model.head.weight - rewards) < 1e-5
    model.save(tmp_path / "turned", Head(-2 * model.head.weight))
    turned = np.array(load_scorer(str(tmp_path / "turned"))(prompts=["how was it?"] * 3, completions=texts))
    assert np.ptp(turned + 2 * rewards) < 1e-4
    cost, tokenizer = load_reward_model(folders[0])
    cost.config.shfcas_cost_model = True
    save_model(tmp_path / "cost", cost, tokenizer)
    costs = FrozenModel(str(tmp_path / "cost"))
    expected = np.array(load_scorer(str(tmp_path / "cost"))(prompts=["how was it?"] * 3, completions=texts))
    found = costs.features(["how was it?"] * 3, texts) @ costs.head.weight
    assert np.ptp(found - expected) < 1e-5 and np.ptp(found) > 1e-3
    costs.save(tmp_path / "again", costs.head)
    again = load_scorer(str(tmp_path / "again"))(prompts=["how was it?"] * 3, completions=texts)
    assert again == pytest.approx(expected, abs=1e-5)


def test_a_backbone_adds_features_and_no_reward(tmp_path: Path) -> None:
    names = [tiny.save_reward_model(tmp_path / name, seed=seed) for seed, name in enumerate(("proxy", "backbone"))]
    texts, prompts = ["a good day", "the train was late", "bad"], ["how was it?"] * 3
    model = FrozenModel(names[0], backbone=names[1])
    features = model.features(prompts, texts)
    rewards = np.array(load_scorer(names[0])(prompts=prompts, completions=texts))
    assert features.shape == (3, 64) and np.ptp(features @ model.head.weight - rewards) < 1e-5
    other = Head(np.random.default_rng(0).normal(size=64))
    model.save(tmp_path / "saved", other)
    saved = np.array(load_scorer(str(tmp_path / "saved"))(prompts=prompts, completions=texts))
    assert np.ptp(saved - features @ other.weight) < 1e-4 and np.ptp(saved) > 1e-2
    trained = {"policy": "p", "reward_model": "r", "gold": "g:g", "prompts": "q", "eval_prompts": "e"}
    assert build(CompareConfig, trained).backbone() is None  # the proxy is that model itself
    trained |= {"preferences": "x", "proxy": {}}
    assert build(CompareConfig, trained).backbone() == "r"
    assert build(CompareConfig, {**trained, "features": "proxy"}).backbone() is None


def test_the_page_says_first_where_labels_teach_nothing(done: Path) -> None:
    config = read_json(done / "comparison.json")["config"]
    test = {"metric": "pair_accuracy", "group": "", "strategy": "none", "budget": 6, "difference": 0.1}
    assert threats(config, [], [{**test, "low": -0.1, "high": 0.3}])[0].startswith("Random labels do not help here")
    assert threats(config, [], [{**test, "low": -0.3, "high": -0.1}])[0].startswith("Seeds share the models")


def test_a_decoder_is_read_at_its_last_token_and_long_pairs_are_cut(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = tiny.policy_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, max_position_embeddings=48, pad_token_id=tokenizer.pad_token_id, initializer_range=0.3,
    )  # fmt: skip
    save_model(tmp_path / "decoder", LlamaForSequenceClassification(config), tokenizer)
    model = FrozenModel(str(tmp_path / "decoder"))
    prompt = [{"role": "user", "content": "how was it?"}]
    texts = ["good", "the soup was cold and late", "a bad day"]
    expected = load_scorer(str(tmp_path / "decoder"))(prompts=[prompt] * 3, completions=texts)
    assert np.ptp(model.features([prompt] * 3, texts) @ model.head.weight - np.array(expected)) < 1e-4
    pairs = [Preference(prompt, "good", "bad", margin=1.5), Preference(prompt, "good", "long " * 60)]
    differences, margins = model.differences(pairs)
    assert differences.shape == (2, 16) and margins.tolist() == [1.5, 0.0]


def test_a_model_whose_score_is_not_linear_is_refused(policy: str) -> None:
    with pytest.raises(UserError, match="no trained reward head"):
        FrozenModel(policy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategies": ["shf_cas"]}, "strategies: expected random among them"),
        (
            {"strategies": ["random", "shf_cass"]},
            "strategies: .*, got 'shf_cass'; did you mean shf_cas",
        ),
        ({"budgets": [3, 3]}, "budgets: expected one or more values, each once"),
        ({"budgets": [0]}, "budgets: expected at least 1, got 0"),
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
        ({"pool_share": 0}, "pool_share: expected above 0 and at most 1, got 0"),
        ({"label_noise": 0.7}, "label_noise: expected at least 0 and at most 0.5, got 0.7"),
        ({"selection": {"seed": 1}}, "selection.seed: expected none, got 1; each seed draws for itself"),
        ({"l2": 0}, "l2: expected above 0, got 0"),
        (
            {"reward_model": "tests.support.tiny:letter_reward"},
            "labels cannot refine a function",
        ),
        ({"rounds": 2}, "rounds: expected 1 in a comparison, got 2"),
        ({"reward": {"held_out": 0.1}}, "reward.held_out: expected 0 with refine head, got 0.1"),
        ({"evaluation": {}}, "evaluation.group_by: expected the column of the values in blind, got None"),
        ({"ppo": ["mean_pacs"]}, "ppo: expected some of strategies, got"),
        ({"ppo": ["random"], "ppo_seeds": 5}, r"ppo_seeds: expected at most seeds \(2\), got 5"),
        (
            {"ppo": ["random"], "rl": {"algorithm": "best_of_n"}},
            "rl.algorithm: .*best_of_n trains no policy",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(values: dict[str, Any], change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(CompareConfig, {**values, **change})


def test_the_quick_comparison_is_a_configuration() -> None:
    from shfcas.demo.sentiment import BLIND_TOPICS
    from shfcas.utils.config import read_yaml

    config = build(CompareConfig, read_yaml(Path(__file__).parents[2] / "configs" / "compare-quick.yaml"))
    assert config.blind == list(BLIND_TOPICS) and config.seeds >= 10
