"""The configurations of the paper's set-up: they parse, and run on tiny models of the same kinds and made-up rows."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shfcas.compare.config import CompareConfig
from shfcas.compare.run import compare
from shfcas.data import pku
from shfcas.utils.config import build, read_yaml
from shfcas.utils.errors import UserError
from shfcas.utils.files import read_json
from shfcas.utils.parquet import read_parquet
from tests.support.architectures import save_policy
from tests.support.safe_rlhf_model import save_safe_rlhf

FOLDER = Path(__file__).parents[2] / "configs" / "paper"
TASKS = pytest.mark.parametrize("task", ["safety", "helpfulness"])


def row(category: str, number: int, better: int, safer: int) -> dict[str, Any]:
    """A row with the columns of PKU-SafeRLHF that are read, and some that are not."""
    marks = {name: name == category for name in (*pku.SEEN, *pku.BLIND, "Animal Abuse")}
    none = dict.fromkeys(marks, False)
    return {
        "prompt": f"how was the {category} number {number}?", "prompt_source": "made up",
        "response_0": f"a good day {number}", "response_1": f"bad {number}",
        "is_response_0_safe": safer == 0, "is_response_1_safe": safer == 1,
        "response_0_harm_category": none if number % 2 else marks, "response_1_harm_category": marks,
        "better_response_id": better, "safer_response_id": safer,
    }  # fmt: skip


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    made = [
        row(category, number, number % 2, (number // 2) % 2)
        for category, number in itertools.product((*pku.SEEN, *pku.BLIND, "Animal Abuse"), range(9))
    ]
    path = tmp_path / "pku.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in made))
    monkeypatch.setenv(pku.SOURCE, str(path))
    monkeypatch.setattr(pku, "PER_CATEGORY", 3)
    pku._parts.cache_clear()
    yield made
    pku._parts.cache_clear()


def test_prompts_are_split_and_the_proxy_sees_half_of_the_categories(rows: list[dict[str, Any]]) -> None:
    trained, held_out = pku.train_prompts(), pku.held_out_prompts()
    for part, count in ((trained, 3), (held_out, 3)):
        assert Counter(r["category"] for r in part) == dict.fromkeys((*pku.SEEN, *pku.BLIND), count)
        assert len({r["prompt_id"] for r in part}) == len(part)
    texts = [{r["prompt"][0]["content"] for r in part} for part in (trained, held_out)]
    assert not texts[0] & texts[1]
    by_prompt = {r["prompt"]: r for r in rows}
    for pairs, key in (
        (pku.safety_preferences(), "safer_response_id"), (pku.helpfulness_preferences(), "better_response_id"),
    ):  # fmt: skip
        assert len(pairs) == 5 * 6
        for pair in pairs:
            asked = pair["prompt"][0]["content"]
            source = by_prompt[asked]
            assert asked not in texts[1] and pku.category_of(source) in pku.SEEN
            assert pair["chosen"] == source[f"response_{source[key]}"]
            assert pair["chosen_safe"] == (source["safer_response_id"] == source[key])
    asked = {r["prompt"][0]["content"] for r in pku.demonstrations()}
    assert len(asked) == 10 * 3 and not asked & (texts[0] | texts[1])


def test_data_without_a_category_are_refused(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    few = [r for r in rows if "Violence" not in r["prompt"]]
    (tmp_path / "pku.jsonl").write_text("".join(json.dumps(r) + "\n" for r in few))
    with pytest.raises(UserError, match="expected prompts of the category Violence, got 0; set SHFCAS_PKU_SAFERLHF"):
        pku.train_prompts()


@TASKS
def test_the_configurations_are_the_authors_settings(task: str, rows: list[dict[str, Any]]) -> None:
    config = build(CompareConfig, read_yaml(FOLDER / f"{task}.yaml"))
    config.check_inputs()
    sampling, proxy = config.sampling, config.proxy
    assert proxy is not None and config.blind == list(pku.BLIND)
    assert (sampling.num_completions, sampling.temperature, sampling.max_new_tokens) == (8, 0.7, 128)
    for training in (proxy, config.reward):
        assert (training.learning_rate, training.num_train_epochs, training.batch_size) == (2e-5, 2, 4)
        assert (training.lora.r, training.lora.alpha, training.weight_decay) == (8, 32, 0.1)
    assert {"random", "shf_cas", "rso"} == set(config.ppo or ())


@pytest.mark.slow
@TASKS
def test_they_run_on_tiny_models_of_the_same_kinds(task: str, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    values = read_yaml(FOLDER / f"{task}.yaml")
    (tmp_path / "gold").mkdir()
    short = {"num_completions": 4, "max_new_tokens": 6}
    values |= {
        "output": str(tmp_path / "run"), "policy": save_policy("gpt_neox", tmp_path / "policy"), "preflight": None,
        "gold": save_safe_rlhf(tmp_path / "gold", score_type="cost" if task == "safety" else "reward"),
        "budgets": [4], "seeds": 1, "ppo": ["rso"], "ppo_seeds": 1, "jobs": 1, "max_prompts": 12,
        "strategies": ["random", "rso"],
    }  # fmt: skip
    values["reward_model"] = values["policy"]
    values["sampling"] |= short
    values["evaluation"]["sampling"] |= {"max_new_tokens": 6}
    values["sft"] |= {"max_length": 64}
    ppo = {"num_rollouts": 1, "rollout_batch_size": 4, "mini_batch_size": 4, "max_completion_length": 6}
    values["rl"]["ppo"] = ppo | {"max_prompt_length": 64}
    compare(build(CompareConfig, values))
    run = tmp_path / "run"
    names = {r["metric"] for r in read_parquet(run / "results.parquet").to_pylist()}
    assert {"pair_accuracy", "policy_gold_reward", "policy_kl"} <= names
    folders = sorted(path.parent for path in run.glob("policies/*/*/*/metrics.json"))
    assert len(folders) == 2 and all("gold_reward" in read_json(folder / "metrics.json") for folder in folders)
