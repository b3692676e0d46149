"""RLOO and GRPO: they learn, go on where they were killed, and fall into none of the traps of their trainers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from shfcas.data.chat import encode_prompt
from shfcas.models.loading import load_policy
from shfcas.training.lora import AdapterConfig
from shfcas.training.online.config import RLOOConfig
from shfcas.training.online.train import train_online
from shfcas.training.online.trainer import make_trainer
from shfcas.training.ppo.rollout import prompt_rows
from shfcas.utils.errors import UserError
from tests.support import ppo_tiny
from tests.support.online_runs import BOTH, liked, prompts, run, save_policy, short, trainer


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("models") / "policy")


# Learning


@BOTH
def test_the_reward_rises_and_the_kl_is_what_it_costs(algorithm: type, policy: str, tmp_path: Path) -> None:
    settings = short(algorithm, num_rollouts=12, rollout_batch_size=32, mini_batch_size=16, kl_coef=0.01)
    history, _ = run(policy, tmp_path, settings)
    scores = [row["objective/scores"] for row in history]
    assert [row["rollout"] for row in history] == list(range(12))
    assert sum(scores[-3:]) / 3 > scores[0] + 0.2
    assert history[0]["objective/kl"] == pytest.approx(0, abs=1e-5) and history[-1]["objective/kl"] > 0.5
    held, _ = run(policy, tmp_path / "held", replace(settings, kl_coef=1.0))
    assert held[-1]["objective/kl"] < 0.8 * history[-1]["objective/kl"]


@BOTH
def test_a_seed_gives_the_same_weights_twice(algorithm: type, policy: str, tmp_path: Path) -> None:
    first, second = (run(policy, tmp_path / name, short(algorithm)) for name in "ab")
    assert first == second
    assert run(policy, tmp_path / "c", short(algorithm), seed=1)[1] != first[1]


class KilledError(BaseException):
    pass


@BOTH
@pytest.mark.parametrize("rank", [0, 4], ids=["all weights", "lora"])
def test_killed_and_resumed_gives_the_weights_of_an_unbroken_run(
    algorithm: type, rank: int, policy: str, tmp_path: Path
) -> None:
    """More rollouts than one pass over the prompts has, two passes over each, two parts a step."""
    changes = {"num_rollouts": 5, "num_iterations": 2, "gradient_accumulation_steps": 2, "save_rollouts": 1}
    settings = short(algorithm, lora=AdapterConfig(r=rank), learning_rate=1e-2 if rank else 1e-3, **changes)
    unbroken = run(policy, tmp_path / "unbroken", settings)
    calls = 0

    def deadly(**arguments: Any) -> list[float]:
        nonlocal calls
        calls += 1
        torch.rand(calls)  # whatever happens to the global generator does not matter
        if calls in (2, 5):
            raise KilledError
        return liked(**arguments)

    for _ in range(2):
        with pytest.raises(KilledError):
            run(policy, tmp_path / "broken", settings, deadly)
        assert not (tmp_path / "broken" / "out").exists()
    broken = run(policy, tmp_path / "broken", settings, deadly)
    assert calls == 7  # five rollouts, and two that were lost
    assert broken == unbroken


# The traps


@BOTH
@pytest.mark.parametrize("rank", [0, 4], ids=["all weights", "lora"])
def test_the_reference_is_the_policy_in_memory(
    algorithm: type, rank: int, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL would load one by the name in the configuration, which may be another model, or none."""
    model, tokenizer = load_policy(policy)
    model.config._name_or_path = "nobody/nothing"
    settings = short(algorithm, lora=AdapterConfig(r=rank))
    assert algorithm().kl_coef > 0
    given = {"prompts": prompts(), "reward": liked, "work_dir": tmp_path, "seed": 0, "metrics": {}}
    online = make_trainer(model, tokenizer, settings=settings, **given)
    assert online.beta == online.args.beta == settings.kl_coef
    assert (online.ref_model is None) == (rank > 0)
    online.train()
    history = [row for row in online.state.log_history if "rollout" in row]
    assert history[0]["objective/kl"] == pytest.approx(0, abs=1e-5) and history[-1]["objective/kl"] != 0
    if rank == 0:
        start = load_file(Path(policy) / "model.safetensors")
        assert all(torch.equal(online.ref_model.state_dict()[name], value) for name, value in start.items())
    free = make_trainer(*load_policy(policy), settings=replace(settings, kl_coef=0.0), **given)
    assert free.beta == 0 and free.ref_model is None


@BOTH
def test_log_probabilities_and_kl_are_those_of_the_distribution_that_was_sampled(
    algorithm: type, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = short(algorithm, temperature=0.7, lora=AdapterConfig(r=0), learning_rate=1e-3)
    online = trainer(policy, tmp_path, settings)
    online.model.generation_config.top_k = 1  # a model's own habits do not count
    online.model.generation_config.repetition_penalty = 5.0
    seen = []
    score = type(online)._generate_and_score_completions

    def watch(self: Any, inputs: list) -> dict:
        output = score(self, inputs)
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        sums = []
        for model in (self.model, self.ref_model):
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
            chosen = (logits[:, :-1] / 0.7).log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
            width = output["completion_ids"].shape[1]
            sums.append((chosen[:, -width:] * output["completion_mask"]).sum(1))
        if "old_logps" in output:
            old = output["old_logps"]
        else:
            old = (output["old_per_token_logps"] * output["completion_mask"]).sum(1)
        assert torch.allclose(old, sums[0], atol=1e-4)
        seen.append({"objective/kl": (sums[0] - sums[1]).mean().item(), "objective/entropy": -sums[0].mean().item()})
        answers = output["completion_ids"][:4].tolist()
        assert len({tuple(answer) for answer in answers}) > 1
        return output

    monkeypatch.setattr(type(online), "_generate_and_score_completions", watch)
    online.train()
    history = [row for row in online.state.log_history if "rollout" in row]
    assert len(seen) == len(history) == 3
    for row, expected in zip(history, seen, strict=True):
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert abs(seen[-1]["objective/kl"]) > 1e-3


@BOTH
def test_answers_are_sampled_at_the_temperature(
    algorithm: type, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[list[list[int]]] = []

    def keep(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        groups.extend(completion_ids[i : i + 4] for i in range(0, 16, 4))
        return [float(i) for i in range(16)]

    run(policy, tmp_path, short(algorithm, num_rollouts=1, temperature=1e-3), keep)
    assert all(answer == group[0] for group in groups for answer in group)  # next to none of it is left to chance
    run(policy, tmp_path / "hot", short(algorithm, num_rollouts=1, temperature=1.0), keep)
    assert all(answer != group[0] for group in groups[4:] for answer in group[1:])


@BOTH
def test_activations_can_be_computed_again(algorithm: type, policy: str, tmp_path: Path) -> None:
    plain, again = (
        run(policy, tmp_path / str(on), short(algorithm, activation_checkpointing=on))[0] for on in (False, True)
    )
    for row, expected in zip(again, plain, strict=True):
        assert row == pytest.approx(expected, abs=1e-3)


@BOTH
def test_an_answer_without_any_stop_token_is_penalised(algorithm: type, tmp_path: Path) -> None:
    """Five stop ids, most of them in the generation configuration alone."""
    model = ppo_tiny.tiny_model()
    model.generation_config.eos_token_id = [ppo_tiny.EOS, *range(20, 24)]
    model.save_pretrained(tmp_path / "policy")
    ppo_tiny.tiny_tokenizer().save_pretrained(tmp_path / "policy")
    lengths: list[list[int]] = []

    def nothing(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        lengths.extend(completion_ids)
        return [0.0] * len(completion_ids)

    settings = short(algorithm, num_rollouts=1, missing_eos_penalty=1.5)
    (row,), _ = run(str(tmp_path / "policy"), tmp_path, settings, nothing)
    finished = [ids[-1] == ppo_tiny.EOS or 20 <= ids[-1] < 24 for ids in lengths]
    assert all(i not in (ppo_tiny.EOS, *range(20, 24)) for ids in lengths for i in ids[:-1])
    assert 0 < sum(finished) < len(finished) == 16
    assert row["val/num_eos_tokens"] == sum(finished)
    assert row["objective/scores"] == pytest.approx(-1.5 * (16 - sum(finished)) / 16)


@BOTH
def test_a_metric_is_measured_and_changes_nothing(algorithm: type, policy: str, tmp_path: Path) -> None:
    def gold(completions: list[str], **columns: Any) -> list[float | None]:
        return [None, *(float(len(text)) for text in completions[1:])]  # it need not apply to every answer

    plain, watched = (
        run(policy, tmp_path / "a", short(algorithm)),
        run(policy, tmp_path / "b", short(algorithm), metrics={"gold": gold}),
    )
    assert plain[1] == watched[1]
    assert all(row["objective/gold"] > 1 for row in watched[0])
    for row, expected in zip(watched[0], plain[0], strict=True):
        assert {name: row[name] for name in expected} == pytest.approx(expected)


@BOTH
def test_the_reward_gets_text_and_columns_in_the_shape_of_the_prompts(
    algorithm: type, policy: str, tmp_path: Path
) -> None:
    calls: list[dict] = []

    def reward(**arguments: Any) -> list[float]:
        calls.append(arguments)
        return [0.0] * len(arguments["prompts"])

    for chat in (False, True):
        rows = [{**row, "image": "not a picture", "trainer_state": 1} for row in prompts(chat)]
        rows[0]["rare"] = "only here"
        train_online(
            policy,
            rows,
            reward=reward,
            settings=short(algorithm, num_rollouts=1),
            output=tmp_path / f"{chat}",
            work_dir=tmp_path / "w",
            seed=0,
        )
        call = calls.pop()
        assert len(call["prompts"]) == 16 and call["prompts"][:4] == [call["prompts"][0]] * 4  # a group
        numbers = {row["prompt_id"]: row["number"] for row in rows}
        assert call["number"] == [numbers[i] for i in call["prompt_id"]]
        assert [p in [row["prompt"] for row in rows] for p in call["prompts"]] == [True] * 16
        assert set(call["rare"]) <= {None, "only here"}
        answer = call["completions"][0]
        assert answer[0]["role"] == "assistant" if chat else isinstance(answer, str)
        text = answer[0]["content"] if chat else answer
        tokenizer = load_policy(policy)[1]
        assert text == tokenizer.decode(call["completion_ids"][0], skip_special_tokens=True).strip()


@BOTH
def test_rollouts_take_the_prompts_that_ppo_takes(algorithm: type, policy: str, tmp_path: Path) -> None:
    seen: list[list[int]] = []

    def look(number: list[int], **columns: Any) -> list[float]:
        seen.append(number)
        return [0.0] * len(number)

    run(policy, tmp_path, short(algorithm), look, seed=3)
    assert seen == [[i for i in prompt_rows(k, 4, 8, seed=3) for _ in range(4)] for k in range(3)]


@BOTH
@pytest.mark.parametrize("chat", [False, True], ids=["text", "messages"])
def test_prompts_have_the_tokens_that_sampling_gives_them(
    algorithm: type, chat: bool, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = trainer(policy, tmp_path, short(algorithm, num_rollouts=1), rows=prompts(chat))
    seen: list[list[int]] = []
    answer = type(online)._answers
    monkeypatch.setattr(
        type(online), "_answers", lambda self, prompt_ids: seen.extend(prompt_ids) or answer(self, prompt_ids)
    )
    online.train()
    expected = [encode_prompt(online.processing_class, row["prompt"]) for row in prompts(chat)]
    assert len(seen) == 16 and all(ids in expected for ids in seen)


@BOTH
def test_dropout_is_off_wherever_a_model_keeps_it(algorithm: type, tmp_path: Path) -> None:
    ppo_tiny.tiny_model(attention_dropout=0.5).save_pretrained(tmp_path / "policy")
    ppo_tiny.tiny_tokenizer().save_pretrained(tmp_path / "policy")
    settings = short(algorithm, lora=AdapterConfig(r=4, dropout=0.5))
    history, _ = run(str(tmp_path / "policy"), tmp_path, settings)
    assert history[0]["objective/kl"] == pytest.approx(0, abs=1e-5)


@BOTH
def test_nothing_is_reported_and_nothing_is_halved_on_a_cpu(
    algorithm: type, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ping(*arguments: Any, **more: Any) -> None:
        raise AssertionError("telemetry")

    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", ping)
    online = trainer(policy, tmp_path, short(algorithm))
    assert not online.args.bf16 and online.args.report_to == []
    assert {parameter.dtype for parameter in online.model.parameters()} == {torch.float32}


@BOTH
@pytest.mark.parametrize("rank", [0, 4])
def test_what_is_trained_is_float32_whatever_the_device_prefers(
    algorithm: type, rank: int, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a policy in bfloat16 has a KL of exactly 0 to itself: both sides are the same forward pass."""
    monkeypatch.setattr("shfcas.models.loading._dtype", lambda: torch.bfloat16)
    history, _ = run(policy, tmp_path, short(algorithm, lora=AdapterConfig(r=rank), num_rollouts=1))
    (weights,) = (tmp_path / "out").glob("*model.safetensors")
    assert {weight.dtype for weight in load_file(weights).values()} == {torch.float32}
    assert history[0]["objective/kl"] == 0.0


@BOTH
def test_a_step_in_parts_is_the_same_step(algorithm: type, policy: str, tmp_path: Path) -> None:
    changes = {"num_rollouts": 1, "lora": AdapterConfig(r=0), "learning_rate": 1e-3}
    weights = []
    for parts in (1, 4):
        run(policy, tmp_path / str(parts), short(algorithm, gradient_accumulation_steps=parts, **changes))
        weights.append(AutoModelForCausalLM.from_pretrained(tmp_path / str(parts) / "out").state_dict())
    moved = max((weights[0][k] - v).abs().max() for k, v in load_file(Path(policy) / "model.safetensors").items())
    apart = max((weights[0][k] - weights[1][k]).abs().max() for k in weights[0])
    assert moved > 1e-4 and apart < 0.02 * moved


# Errors


def test_a_reward_model_has_a_tokenizer_of_its_own_and_a_long_answer_does_not_stop_training(
    policy: str, reward_model: str, tmp_path: Path
) -> None:
    from shfcas.rewards.scorers import load_scorer

    scorer = load_scorer(reward_model)
    history, _ = run(policy, tmp_path, short(RLOOConfig), scorer)
    assert history[0]["objective/scores_std"] > 0
    scorer.max_length = 8
    history, _ = run(policy, tmp_path / "cut", short(RLOOConfig), scorer)
    assert history[0]["objective/scores_std"] > 0 and scorer.too_long_count > 0
    scorer.too_long = "error"
    with pytest.raises(UserError, match="more than the reward model's limit of 8"):
        run(policy, tmp_path / "long", short(RLOOConfig), scorer)


# Reading the metrics


@BOTH
def test_metrics_that_ppo_has_too_bear_its_names(algorithm: type, policy: str, tmp_path: Path) -> None:
    from shfcas.training.ppo.train import PPOStageConfig, train_ppo

    settings = PPOStageConfig(num_rollouts=1, rollout_batch_size=8, mini_batch_size=4, max_completion_length=6)
    (ppo,) = train_ppo(
        policy,
        prompts(),
        reward=liked,
        settings=settings,
        output=tmp_path / "p",
        work_dir=tmp_path / "w",
        seed=0,
        metrics={"gold": liked},
    )
    (row,), _ = run(policy, tmp_path, short(algorithm, num_rollouts=1), metrics={"gold": liked})
    assert set(row) - set(ppo) <= {"frac_reward_zero_std"}
    assert {name for name in ppo if name.startswith(("objective/", "completions/"))} <= set(row)
    assert row["objective/rlhf_reward"] == pytest.approx(row["objective/scores"] + row["objective/non_score_reward"])
