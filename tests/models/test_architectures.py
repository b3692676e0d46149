"""Every architecture goes through the whole loop, samples with exact log-probabilities, and scores alone as in company.

All models are tiny and random, so nothing here is about quality.
"""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from shfcas.data.candidates import read_candidates
from shfcas.data.chat import encode_prompt
from shfcas.data.preferences import Preference
from shfcas.models.loading import load_policy, load_reward_model
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.run import run
from shfcas.rewards.scorers import ModelScorer, load_scorer
from shfcas.sampling.config import SamplingConfig
from shfcas.sampling.local import LocalSampler
from shfcas.training.lora import AdapterConfig
from shfcas.training.ppo.collector import RolloutCollector
from shfcas.training.reward.config import RewardModelConfig
from shfcas.training.reward.train import train_reward_model
from shfcas.utils.config import build
from tests.support import tiny
from tests.support.architectures import POLICIES, REWARDS, save_policy, save_reward

QUICK = ("gemma2", "gpt_neox")  # in the default suite, too
REWARD_OF = {
    "llama": "modernbert",
    "qwen3": "gemma2",
    "gemma2": "deberta-v2",
    "gpt_neox": "llama",
    "gpt2": "bert",
    "opt": "gpt_neox",
    "phi": "qwen3",
    "mistral": "opt",
    "bloom": "gpt2",
}
GOLD_OF = {"llama": "mistral", "gpt2": "qwen3"}
WORDS = ["the", "soup", "was", "good", "and", "bread", "fine", "a", "bad", "film", "late", "hotel"]


def each(names: Any) -> list[Any]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", each(POLICIES))
def test_log_probabilities_are_those_of_one_sequence_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, chat, template = POLICIES[name]
    model, tokenizer = load_policy(save_policy(name, tmp_path / "policy"), template)
    reference, _ = load_policy(save_policy(name, tmp_path / "reference", seed=1), template)
    seen: dict[tuple, list] = {}
    generate = model.generate

    def recording(**arguments: Any) -> torch.Tensor:
        sequences = generate(**arguments)
        width = arguments["input_ids"].shape[1]
        for ids, mask, row in zip(arguments["input_ids"], arguments["attention_mask"], sequences, strict=True):
            seen.setdefault(tuple(ids[mask.bool()].tolist()), []).append(row[width:].tolist())
        return sequences

    monkeypatch.setattr(model, "generate", recording)
    prompts = tiny.prompts(4, chat=chat)
    config = SamplingConfig(num_completions=3, max_new_tokens=12, batch_size=5, temperature=1.0)
    sampler = LocalSampler(model, tokenizer, config=config, references={"reference_logprobs": reference})
    rows = list(sampler(prompts))
    lengths = {len(encode_prompt(tokenizer, row["prompt"])) for row in prompts}
    assert len(lengths) > 1  # so there was padding
    for row in rows:
        prompt = encode_prompt(tokenizer, row["prompt"])
        assert tokenizer.bos_token_id is None or prompt.count(tokenizer.bos_token_id) <= 1
        for i, answer in enumerate(seen[tuple(prompt)]):
            answer = answer[: row["num_tokens"][i]]
            assert row["finished"][i] == (answer[-1] in sampler.end_ids)
            for column, judge in {"logprobs": model, "reference_logprobs": reference}.items():
                with torch.no_grad():
                    table = judge(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
                alone = sum(table[len(prompt) - 1 + k, token].item() for k, token in enumerate(answer))
                assert row[column][i] == pytest.approx(alone, rel=1e-5, abs=1e-5), column


def settings(name: str, folder: Path) -> dict[str, Any]:
    """A whole run of one architecture, started from a raw model by supervised fine-tuning."""
    _, _, chat, template = POLICIES[name]
    held_out = [{**row, "prompt": f"tell me about {i} {row['prompt']}"} for i, row in enumerate(tiny.prompts(4, False))]
    if chat:
        for row in held_out:
            row["prompt"] = [{"role": "user", "content": row["prompt"]}]
    answers = [{"prompt": row["prompt"], "completion": " a good day"} for row in tiny.prompts(8, chat)]
    return {
        "policy": save_policy(name, folder / "policy"),
        "reward_model": save_reward(REWARD_OF[name], folder / "reward"),
        "gold": save_reward(GOLD_OF.get(name, "bert"), folder / "gold", seed=2),  # a third tokenizer
        "prompts": tiny.write_lines(folder / "prompts.jsonl", tiny.prompts(6, chat)),
        "eval_prompts": tiny.write_lines(folder / "held_out.jsonl", held_out),
        "demonstrations": tiny.write_lines(folder / "demonstrations.jsonl", answers),
        "chat_template": template,
        "policy_score": "logprob_ratio",
        "sft": {"num_train_epochs": 1, "batch_size": 4},
        "sampling": {"num_completions": 4, "temperature": 1.0, "max_new_tokens": 8, "batch_size": 10},
        "selection": {"strategy": "random", "budget": 6},
        "reward": {"num_train_epochs": 1, "batch_size": 4},
        "rl": {
            "ppo": {
                "num_rollouts": 2,
                "rollout_batch_size": 6,
                "mini_batch_size": 3,
                "num_ppo_epochs": 1,
                "learning_rate": 1e-3,
                "max_completion_length": 8,
                "save_rollouts": 1,
                "lora": {"r": 4},
            },
        },
        "evaluation": {"sampling": {"num_completions": 2, "temperature": 1.0, "max_new_tokens": 8}},
    }


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers(v)]
    if isinstance(value, list):
        return [n for v in value for n in numbers(v)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_the_whole_loop_runs_and_goes_on_where_it_was_stopped(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_at_the_second(self: Any, index: int, *rest: Any) -> Any:
        if index == 1:
            raise KeyboardInterrupt
        return collect(self, index, *rest)

    collect = RolloutCollector.collect
    values = settings(name, tmp_path)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(build(RunConfig, {**values, "output": str(whole)}))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RolloutCollector, "collect", stop_at_the_second)
        run(build(RunConfig, {**values, "output": str(broken)}))
    assert list((broken / "round-1").glob(".policy.work/checkpoint-*"))  # after the first of two rollouts
    run(build(RunConfig, {**values, "output": str(broken)}))

    metrics = (whole / "round-1" / "metrics.json").read_text()
    assert (broken / "round-1" / "metrics.json").read_text() == metrics
    history = (whole / "round-1" / "policy" / "history.json").read_text()
    assert (broken / "round-1" / "policy" / "history.json").read_text() == history

    found = json.loads(metrics)
    found.pop("detection")  # of six prompts there may be none that it is defined for
    rollouts = json.loads(history)
    assert len(rollouts) == 2 and abs(rollouts[0]["objective/kl"]) < 1e-3  # the policy is its own reference
    assert all(map(math.isfinite, numbers(found) + numbers(rollouts)))
    table = read_candidates(whole / "round-1" / "conflicts.parquet")
    for column in ("logprobs", "reference_logprobs", "rewards"):
        assert torch.isfinite(table.values(column)).all()
    assert len(set(table.values("rewards").tolist())) > 6
    assert (whole / "report.html").stat().st_size > 0
    before, after = (load_policy(str(whole / folder / "policy"))[0] for folder in ("round-0", "round-1"))
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "deberta-v2" else pytest.mark.slow) for n in REWARDS]
)
def test_a_reward_model_scores_alone_as_in_company_and_learns(name: str, tmp_path: Path) -> None:
    rng = random.Random(0)
    folder = save_reward(name, tmp_path / "model")
    model, tokenizer = load_reward_model(folder)
    prompts = [row["prompt"] for row in tiny.prompts(8)]
    answers = [" ".join(rng.choices(WORDS, k=k)) for k in (1, 3, 5, 8, 12, 2, 20, 30)]
    alone = [ModelScorer(model, tokenizer)([p], [a])[0] for p, a in zip(prompts, answers, strict=True)]
    assert len({round(score, 4) for score in alone}) == len(alone)
    for side in ("left", "right"):
        tokenizer.padding_side = side
        tokenizer.save_pretrained(folder)
        assert load_scorer(folder)(prompts, answers) == pytest.approx(alone, rel=1e-5, abs=2e-5)

    pairs = [Preference(p, chosen="a good day", rejected="a bad night") for p in prompts]
    quick = RewardModelConfig(num_train_epochs=3, learning_rate=5e-3, batch_size=4, lora=AdapterConfig(dropout=0.0))
    for rank in (0, 4):
        quick.lora.r, out = rank, tmp_path / f"out{rank}"
        result = train_reward_model(
            folder, pairs, settings=quick, output=out, work_dir=tmp_path / f"work{rank}", seed=0
        )
        assert result["loss"][-1] < result["loss"][0] and result["train_accuracy"] > 0.9
        trained = load_scorer(str(out))
        good, bad = trained(prompts[:1] * 2, ["a good day", "a bad night"])
        assert good > bad
        assert trained(prompts, answers) != pytest.approx(alone, abs=1e-3)
