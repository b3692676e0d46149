"""bfloat16 and what saves memory: the same PPO in other arithmetic, and in other portions."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from shfcas.training.ppo.trainer import PPOTrainer
from shfcas.training.ppo.value_head import PolicyWithValue
from tests.support.ppo_tiny import config, lora, prompts, rollout, share_of, tiny_classifier, tiny_model, tiny_tokenizer


def trainer(folder: Path, **changes: object) -> PPOTrainer:
    extra = {n: changes.pop(n) for n in ("model", "peft_config", "value_model") if n in changes}
    model = extra.pop("model", None) or tiny_model()
    return PPOTrainer(
        model,
        config(folder, **changes),
        train_dataset=prompts(),
        processing_class=tiny_tokenizer(),
        reward_funcs=share_of("w7"),
        **extra,
    )


def rows(ppo: PPOTrainer) -> list[dict[str, float]]:
    return [row for row in ppo.state.log_history if "rollout" in row]


def one_step() -> dict[str, int]:
    """One optimizer step on the whole rollout: its ratio is 1 if both passes compute the same."""
    return {"num_rollouts": 1, "num_ppo_epochs": 1, "per_device_train_batch_size": 8}


@pytest.mark.parametrize("critic", [False, True])
def test_autocast(tmp_path: Path, critic: bool) -> None:
    """float32 weights, bfloat16 products: on the CPU as on a GPU."""
    ppo = trainer(tmp_path, bf16=True, value_model=tiny_classifier(3) if critic else None, **one_step())
    seen = []
    ppo.model.policy.model.layers[0].mlp.up_proj.register_forward_hook(lambda m, i, output: seen.append(output.dtype))
    ppo.train()
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in ppo.model.parameters()} == {torch.float32}
    (row,) = rows(ppo)
    assert row["val/ratio"] == pytest.approx(1, abs=1e-5) and row["policy/approxkl_avg"] < 1e-6
    plain = trainer(tmp_path, **one_step())
    plain.train()
    assert 0 < abs(row["policy/entropy_avg"] - rows(plain)[0]["policy/entropy_avg"]) < 0.05
    start = dict(tiny_model().named_parameters())
    assert not [n for n, p in ppo.model.policy.named_parameters() if torch.equal(p, start[n])]


def test_an_adapter_on_bfloat16_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is trained is float32, and so are log-probabilities and values."""
    ppo = trainer(tmp_path, model=tiny_model().bfloat16(), peft_config=lora(), bf16=True, **one_step())
    trained = {p.dtype for p in ppo.model.parameters() if p.requires_grad}
    frozen = {p.dtype for p in ppo.model.parameters() if not p.requires_grad}
    assert (trained, frozen) == ({torch.float32}, {torch.bfloat16})
    rollout = ppo.collect_rollout(0)
    assert {t.dtype for t in rollout.tokens.values()} == {torch.float32}
    ppo.train()
    assert rows(ppo)[0]["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert "rounds small updates" not in caplog.text


@pytest.mark.parametrize("which", ["model", "value_model"])
def test_trained_bfloat16_weights_are_not_passed_over_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    half = {"model": tiny_model().bfloat16()} if which == "model" else {"value_model": tiny_classifier(3).bfloat16()}
    with caplog.at_level(logging.WARNING, "shfcas"):
        ppo = trainer(tmp_path, **half, **one_step())
    assert "are trained in torch.bfloat16, which rounds small updates to zero" in caplog.text
    ppo.train()
    assert rows(ppo)[0]["val/ratio"] == pytest.approx(1, abs=1e-5)


def weights_after(ppo: PPOTrainer) -> dict[str, Tensor]:
    ppo.train()
    return dict(ppo.model.named_parameters())


@pytest.mark.parametrize("kind", ["full", "lora", "critic"])
def test_activation_checkpointing_changes_nothing(tmp_path: Path, kind: str) -> None:
    """Every layer is computed twice in each of the 8 steps, with the same result."""

    def run(twice: bool) -> tuple[dict[str, Tensor], int]:
        extra = {"peft_config": lora()} if kind == "lora" else {}
        extra |= {"value_model": tiny_classifier(3)} if kind == "critic" else {}
        ppo = trainer(tmp_path, **extra, optim="sgd", learning_rate=0.1, activation_checkpointing=twice)
        calls = []
        for name, module in ppo.model.named_modules():
            if name.endswith("self_attn"):
                module.register_forward_hook(lambda m, *_: calls.append(m) if m.training else None)
        return weights_after(ppo), len(calls)

    expected, once = run(False)
    got, twice = run(True)
    assert once == 8 * (4 if kind == "critic" else 2) and twice == 2 * once
    for name, parameter in expected.items():
        torch.testing.assert_close(got[name], parameter, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("portion", [1, 2])
def test_gradient_accumulation_changes_nothing(tmp_path: Path, portion: int) -> None:
    common = {"optim": "sgd", "learning_rate": 0.1, "entropy_coef": 0.1}
    portions = {"per_device_train_batch_size": portion, "gradient_accumulation_steps": 4 // portion}
    expected = weights_after(trainer(tmp_path, **common))
    got = weights_after(trainer(tmp_path, **common, **portions))
    for name, parameter in expected.items():
        torch.testing.assert_close(got[name], parameter, atol=1e-5, rtol=1e-4)


class Capped(LlamaForCausalLM):
    """A model whose logits are not just its head's output, and that rules a token out."""

    def forward(self, *args: object, **kwargs: object) -> object:
        output = super().forward(*args, **kwargs)
        output.logits = (5.0 * output.logits.tanh()).index_fill(-1, torch.tensor([60]), -torch.inf)
        return output


@pytest.mark.parametrize("kind", ["plain", "capped"])
def test_the_entropy_has_a_gradient(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its derivative along a random direction is what finite differences say; without being asked it has none."""
    torch.manual_seed(0)
    policy = tiny_model()
    if kind == "capped":
        policy.__class__ = Capped
    inputs = rollout().model_inputs([0, 1, 2])
    model = PolicyWithValue(policy, 0.7, entropy_gradient=True).double()
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # float32 is too coarse for finite differences

    def entropy() -> Tensor:
        return model(**inputs).entropy.sum()

    # What follows the layers, which compute their norms in float32 and so are too coarse to differentiate this way.
    parameters = [policy.model.norm.weight, policy.lm_head.weight]
    directions = [torch.randn_like(p) for p in parameters]
    gradients = torch.autograd.grad(entropy(), parameters)
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)).item()
    step, ends = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p += sign * step * d
            ends.append(entropy().item())
            for p, d in zip(parameters, directions, strict=True):
                p -= sign * step * d
    assert abs(slope) > 1e-3
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)
    model.entropy_gradient = False
    assert not entropy().requires_grad
