from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification

from shfcas.training.ppo.trainer import PPOTrainer
from tests.support.ppo_tiny import EOS, config, lora, prompts, share_of, tiny_model, tiny_tokenizer

# Enough stop tokens that some completions end by themselves and some are cut off.
STOP = [EOS, *range(40, 50)]


def trainer(folder: Path, *, reward: object = None, model: object = None, **changes: object) -> PPOTrainer:
    extra = {
        name: changes.pop(name)
        for name in ("peft_config", "metric_funcs", "reward_processing_classes", "train_dataset", "ref_model")
        if name in changes
    }
    return PPOTrainer(
        model or tiny_model(),
        config(folder, **changes),
        train_dataset=extra.pop("train_dataset", prompts()),
        processing_class=tiny_tokenizer(),
        reward_funcs=reward or share_of("w7"),
        **extra,
    )


def rollout_rows(ppo: PPOTrainer) -> list[dict[str, float]]:
    return [row for row in ppo.state.log_history if "rollout" in row]


@pytest.mark.parametrize("adapter", [False, True])
def test_ppo_raises_a_simple_reward_within_a_bounded_kl(tmp_path: Path, adapter: bool) -> None:
    """From 3 % to above 70 % of the wanted word."""
    ppo = trainer(
        tmp_path,
        peft_config=lora() if adapter else None,
        num_rollouts=40,
        rollout_batch_size=64,
        generation_batch_size=64,
        per_device_train_batch_size=32,
        learning_rate=1e-2 if adapter else 3e-3,
        kl_coef=0.01,
        metric_funcs={"gold": share_of("w7")},
    )
    ppo.train()
    rows = rollout_rows(ppo)
    assert [row["rollout"] for row in rows] == list(range(40))
    assert rows[0]["objective/scores"] < 0.1
    assert min(row["objective/scores"] for row in rows[-5:]) > 0.7
    assert max(row["objective/kl"] for row in rows) < 30
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert rows[0]["objective/gold"] == pytest.approx(rows[0]["objective/scores"])


def test_log_rows_add_up(tmp_path: Path) -> None:
    ppo = trainer(tmp_path, model=tiny_model(1), reward=[share_of("w7"), length_reward], kl_estimator="k3")
    ppo.train()
    first, second = rollout_rows(ppo)
    for row in (first, second):
        parts = row["objective/non_score_reward"] + row["objective/scores"]
        assert row["objective/rlhf_reward"] == pytest.approx(parts)
        assert row["objective/non_score_reward"] == pytest.approx(-0.05 * row["objective/kl"], abs=1e-6)
        assert row["objective/scores"] == pytest.approx(row["rewards/share"] + row["rewards/length_reward"])
        assert row["completions/mean_length"] == pytest.approx(row["rewards/length_reward"])
        assert row["loss"] == pytest.approx(row["loss/policy_avg"] + 0.1 * row["loss/value_avg"])
        assert 0 <= row["val/num_eos_tokens"] <= 8
        assert row["lr"] == row["learning_rate"] > 0
        assert row["val/ratio_var"] > 0
    assert second["objective/kl"] > 0
    assert (first["step"], second["step"]) == (4, 8)
    assert (first["episode"], second["episode"]) == (8, 16)


@pytest.mark.parametrize("entropy_coef", [0.0, 0.5])
def test_the_entropy_bonus_keeps_the_policy_open(tmp_path: Path, entropy_coef: float) -> None:
    """Without a penalty for leaving the reference, only the bonus holds the policy back from one word."""
    ppo = trainer(
        tmp_path,
        entropy_coef=entropy_coef,
        kl_coef=0.0,
        num_rollouts=15,
        rollout_batch_size=32,
        generation_batch_size=32,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
    )
    ppo.train()
    first, *_, last = rollout_rows(ppo)
    assert first["loss"] == pytest.approx(
        first["loss/policy_avg"] + 0.1 * first["loss/value_avg"] - entropy_coef * first["policy/entropy_avg"]
    )
    assert (last["policy/entropy_avg"] > 2.5) == (entropy_coef > 0)


def length_reward(completion_ids: list[list[int]], **columns: object) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def test_first_step_starts_from_ratio_one(tmp_path: Path) -> None:
    """Dropout anywhere, or another temperature or position in one of the two passes, would show here."""
    ppo = trainer(
        tmp_path,
        model=tiny_model(attention_dropout=0.5),
        peft_config=lora(),
        num_rollouts=1,
        num_ppo_epochs=1,
        per_device_train_batch_size=8,
        temperature=0.6,
    )
    ppo.train()
    (row,) = rollout_rows(ppo)
    assert row["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert row["policy/approxkl_avg"] < 1e-9 and abs(row["val/ratio_var"]) < 1e-9


def test_adaptive_kl_coefficient_moves(tmp_path: Path) -> None:
    settings = {"num_rollouts": 4, "learning_rate": 3e-3, "kl_horizon": 2.5}
    low = trainer(tmp_path, kl_target=1e-3, **settings)
    low.train()
    coefficients = [row["objective/kl_coef"] for row in rollout_rows(low)]
    # KL 0 at first, below the target; then far above it: 20 % of 8 / 80 a rollout, 2.5 x 32 answers.
    assert coefficients[:3] == pytest.approx([0.05, 0.05 * 0.98, 0.05 * 0.98 * 1.02], rel=1e-6)
    high = trainer(tmp_path, kl_target=1e3, **settings)
    high.train()
    coefficients = [row["objective/kl_coef"] for row in rollout_rows(high)]
    assert coefficients == pytest.approx([0.05 * 0.98**k for k in range(4)], rel=1e-2)
    assert high.kl_controller.value < coefficients[-1]


def test_kl_guard_stops_before_another_update(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"num_rollouts": 10, "learning_rate": 1e-2, "kl_coef": 0.0}
    ppo = trainer(tmp_path, max_kl=0.5, **settings)
    ppo.train()
    rows = rollout_rows(ppo)
    assert ppo.stopped_by_kl and 1 < len(rows) < 10
    assert rows[-1]["kl_guard"] == 1.0 and rows[-1]["objective/kl"] > 0.5
    assert "loss" not in rows[-1] and all("kl_guard" not in row for row in rows[:-1])
    assert max(row["objective/kl"] for row in rows[:-1]) <= 0.5
    assert ppo.state.global_step == 4 * (len(rows) - 1)
    assert "exceeds max_kl=0.5: training stops" in caplog.text


def test_score_and_eos_penalty_land_on_the_last_token(tmp_path: Path) -> None:
    """With lambda = 1 and no KL penalty, a token's return is the discounted score of the last one."""
    ppo = trainer(
        tmp_path,
        model=tiny_model(1),
        reward=lambda completions, **columns: [5.0] * len(completions),
        kl_coef=0.0,
        lam=1.0,
        gamma=0.5,
        missing_eos_penalty=3.0,
        reward_clip=4.0,
        stop_token_ids=STOP,
    )
    rollout = ppo.collect_rollout(0)
    assert rollout.finished.any() and not rollout.finished.all()
    for i, length in enumerate(rollout.lengths.tolist()):
        score = 4.0 if rollout.finished[i] else 1.0
        expected = [score * 0.5 ** (length - 1 - t) if t < length else 0.0 for t in range(rollout.mask.shape[1])]
        assert rollout.tokens["returns"][i].tolist() == pytest.approx(expected)
        assert (rollout.completion_ids[i, length - 1].item() in STOP) == rollout.finished[i]


def test_custom_stop_ids_decide_who_has_finished(tmp_path: Path) -> None:
    ppo = trainer(
        tmp_path,
        model=tiny_model(initializer_range=0.01),
        stop_token_ids=list(range(20, 64)),
        missing_eos_penalty=1.0,
        reward=lambda completions, **columns: [0.0] * len(completions),
    )
    rollout = ppo.collect_rollout(0)
    last = rollout.completion_ids.gather(1, rollout.lengths[:, None] - 1).squeeze(1)
    assert rollout.finished.any() and torch.equal(last >= 20, rollout.finished)
    assert rollout.metrics["objective/scores"] == pytest.approx(-(~rollout.finished).float().mean().item())


def test_lora_trains_only_the_adapter_and_the_value_head(tmp_path: Path) -> None:
    ppo = trainer(tmp_path, peft_config=lora(), learning_rate=1e-2)
    start = {name: p.detach().clone() for name, p in ppo.model.named_parameters()}
    before = ppo.collector.reference.logprobs(**ppo.collect_rollout(0).model_inputs([0, 1]))
    rollout = ppo.collect_rollout(0)
    ppo.train()
    for name, parameter in ppo.model.named_parameters():
        trained = "lora_" in name or "value_head" in name
        assert parameter.requires_grad == trained
        assert torch.equal(parameter, start[name]) != trained, name
    assert torch.equal(ppo.collector.reference.logprobs(**rollout.model_inputs([0, 1])), before)


def test_full_fine_tuning_leaves_the_reference_alone(tmp_path: Path) -> None:
    ppo = trainer(tmp_path)
    ppo.train()
    reference, policy = ppo.collector.reference.ref_model, ppo.model.policy
    for name, expected in tiny_model().named_parameters():
        assert torch.equal(reference.get_parameter(name), expected)
        assert not torch.equal(policy.get_parameter(name), expected)


@pytest.mark.parametrize("adapter", [False, True])
def test_save_merged_policy(tmp_path: Path, adapter: bool) -> None:
    ppo = trainer(tmp_path, peft_config=lora() if adapter else None, learning_rate=1e-2)
    ppo.train()
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = ppo.model.policy(ids).logits
    ppo.save_merged_policy(tmp_path / "merged")
    assert torch.equal(ppo.model.policy(ids).logits, expected)
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(loaded(ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(tiny_model()(ids).logits, expected, atol=0.1)


def test_save_model_writes_policy_and_value_head(tmp_path: Path) -> None:
    ppo = trainer(tmp_path, peft_config=lora())
    ppo.save_model(str(tmp_path / "saved"))
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {
        "adapter_model.safetensors",
        "value_head.safetensors",
        "ppo_config.json",
        "tokenizer.json",
    } <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth"))]


def test_conversations_reach_the_callables_as_messages(tmp_path: Path) -> None:
    dataset = Dataset.from_dict(
        {"prompt": [[{"role": "user", "content": f"w{i}"}] for i in range(8)], "number": list(range(8))}
    )
    seen: dict[str, list] = {}

    def reward(**arguments: list) -> list[float]:
        seen.update(arguments)
        return [0.0] * 8

    ppo = trainer(tmp_path, reward=reward, train_dataset=dataset)
    rollout = ppo.collect_rollout(0)
    assert set(seen) == {"prompts", "completions", "completion_ids", "number"}
    for i, number in enumerate(seen["number"]):
        assert seen["prompts"][i] == [{"role": "user", "content": f"w{number}"}]
        ids = rollout.prompt_ids[i][rollout.prompt_mask[i]].tolist()
        assert ids == [2, 4 + number, 3]  # <u> word <a>
        (message,) = seen["completions"][i]
        assert message["role"] == "assistant"
        assert (
            message["content"] == tiny_tokenizer().decode(seen["completion_ids"][i], skip_special_tokens=True).strip()
        )


def test_reward_model_has_its_own_tokenizer(tmp_path: Path) -> None:
    """A BERT classifier sees the pair of texts; its scores do not depend on the batch."""
    tokenizer = tiny_tokenizer(template=False)
    tokenizer.sep_token = "<a>"
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    scorer = BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=1, pad_token_id=1, **settings))
    texts: dict[str, list] = {}

    def keep(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
        texts.update(prompts=prompts, completions=completions)
        return [0.0] * len(prompts)

    ppo = trainer(tmp_path, reward=[scorer, keep], reward_processing_classes=[tokenizer, None], generation_batch_size=3)
    rollout = ppo.collect_rollout(0)
    expected = [
        scorer(**tokenizer(*pair, return_tensors="pt")).logits.item()
        for pair in zip(texts["prompts"], texts["completions"], strict=True)
    ]
    assert rollout.metrics["objective/scores"] == pytest.approx(sum(expected) / 8, abs=1e-5)


def none_for(rows: Callable[[int], bool]) -> Callable[..., list[float | None]]:
    def reward(completions: list[str], **columns: object) -> list[float | None]:
        return [None if rows(i) else 1.0 for i in range(len(completions))]

    return reward


def test_none_means_not_applicable(tmp_path: Path) -> None:
    odd, even = none_for(lambda i: i % 2 == 0), none_for(lambda i: i % 2 == 1)
    odd.__name__, even.__name__ = "odd", "even"
    ppo = trainer(tmp_path, reward=[odd, even], metric_funcs={"odd": odd})
    metrics = ppo.collect_rollout(0).metrics
    assert metrics["objective/scores"] == 1.0
    assert metrics["rewards/odd"] == metrics["objective/odd"] == 1.0


def test_a_policy_by_the_name_of_an_adapter_is_merged(tmp_path: Path) -> None:
    """The reference is the policy as it is named, adapter included."""
    tiny_model().save_pretrained(tmp_path / "base")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), lora())
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    ppo = trainer(tmp_path / "out", model=str(tmp_path / "adapter"), peft_config=lora())
    ids = torch.arange(4, 12)[None]
    with ppo.model.policy.disable_adapter():
        torch.testing.assert_close(ppo.model.policy(ids).logits, adapted.eval()(ids).logits, rtol=1e-4, atol=1e-4)
    assert ppo.collect_rollout(0).metrics["objective/kl"] == pytest.approx(0, abs=1e-5)
