"""One whole update beside a plain implementation: one sequence at a time, no padding, no masks, numbers in lists."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shfcas.training.ppo.rollout import minibatch_rows
from shfcas.training.ppo.trainer import PPOTrainer
from tests.support.ppo_tiny import EOS, config, prompts, share_of, tiny_classifier, tiny_model, tiny_tokenizer

# Enough stop tokens that some completions end by themselves and some are cut off.
STOP = [EOS, *range(40, 50)]
KL_COEF, GAMMA, LAM, CLIP, VF_COEF, LR = 0.2, 0.9, 0.8, 0.2, 0.5, 0.1

Net = Callable[[list[int]], tuple[Tensor, Tensor]]  # token ids to logits and values of every position


def with_head(model: nn.Module, head: nn.Module) -> Net:
    """A policy with a head on its own hidden states."""

    def forward(ids: list[int]) -> tuple[Tensor, Tensor]:
        output = model(torch.tensor([ids]), output_hidden_states=True)
        return output.logits[0], head(output.hidden_states[-1][0]).squeeze(-1)

    return forward


def with_critic(model: nn.Module, critic: nn.Module) -> Net:
    """A policy, and a classifier that scores every prefix."""

    def forward(ids: list[int]) -> tuple[Tensor, Tensor]:
        prefixes = [critic(torch.tensor([ids[: t + 1]])).logits[0, 0] for t in range(len(ids))]
        return model(torch.tensor([ids])).logits[0], torch.stack(prefixes)

    return forward


def reference_update(
    net: Net,
    parameters: list[nn.Parameter],
    reference: nn.Module,
    rows: list[tuple[list[int], list[int], float]],
    steps: list[list[int]],
    settings: dict[str, Any],
    shown: list[list[tuple[list[int], list[int]]]],
) -> None:
    """PPO, written down plainly.

    `rows` holds (prompt, completion, score), `steps` the rows of each optimizer step, `shown` its demonstrations.
    """
    k3, kl_in_loss = settings.get("kl_estimator") == "k3", settings.get("kl_in_loss", False)

    def forward(prompt: list[int], completion: list[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        logits, values = net(prompt + completion)
        for t, token in enumerate(completion):
            log_softmax = logits[len(prompt) + t - 1].log_softmax(-1)
            entropy = -sum(p.exp() * p for p in log_softmax)
            yield log_softmax[token], values[len(prompt) + t - 1], entropy

    old, references, rewarded, advantages, returns = [], [], [], [], []
    with torch.no_grad():
        for prompt, completion, score in rows:
            tokens = list(forward(prompt, completion))
            logprobs, values = [t[0].item() for t in tokens], [t[1].item() for t in tokens]
            ref_logits = reference(torch.tensor([prompt + completion])).logits[0]
            rewards, references_of_row = [], []
            for t, token in enumerate(completion):
                references_of_row.append(ref_logits[len(prompt) + t - 1].log_softmax(-1)[token].item())
                ratio = logprobs[t] - references_of_row[-1]
                rewards.append(0.0 if kl_in_loss else -KL_COEF * (math.exp(-ratio) - 1 + ratio if k3 else ratio))
            rewards[-1] += score
            old.append((logprobs, values))
            references.append(references_of_row)
            rewarded.append(rewards)
        if settings.get("whiten_rewards"):
            flat = [r for row in rewarded for r in row]
            mean = sum(flat) / len(flat)
            deviation = math.sqrt(sum((r - mean) ** 2 for r in flat) / len(flat))
            rewarded = [[(r - mean) / deviation + mean for r in row] for row in rewarded]
        for (_, values), rewards in zip(old, rewarded, strict=True):
            row = []
            for t in range(len(rewards)):
                discounted = 0.0
                for s in range(t, len(rewards)):
                    ahead = values[s + 1] if s + 1 < len(rewards) else 0.0
                    discounted += (GAMMA * LAM) ** (s - t) * (rewards[s] + GAMMA * ahead - values[s])
                row.append(discounted)
            advantages.append(row)
            returns.append([a + v for a, v in zip(row, values, strict=True)])
    flat = [a for row in advantages for a in row]
    mean = sum(flat) / len(flat)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in flat) / len(flat))

    for step, demonstrations in zip(steps, shown, strict=True):
        losses = []
        for i in step:
            for t, (logprob, value, entropy) in enumerate(forward(*rows[i][:2])):
                advantage = (advantages[i][t] - mean) / deviation
                ratio = (logprob - old[i][0][t]).exp()
                policy_loss = -min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
                before, target = old[i][1][t], returns[i][t]
                held = before + (value - before).clamp(-CLIP, CLIP)
                value_loss = 0.5 * max((value - target) ** 2, (held - target) ** 2)
                if kl_in_loss:
                    difference = logprob - references[i][t]
                    policy_loss = policy_loss + KL_COEF * ((-difference).exp() - 1 + difference)
                losses.append(policy_loss + VF_COEF * value_loss - settings.get("entropy_coef", 0.0) * entropy)
        loss = sum(losses) / len(losses)
        if demonstrations:
            likelihoods = [net(p + a)[0][:-1].log_softmax(-1)[len(p) - 1 :] for p, a in demonstrations]
            parts = zip(demonstrations, likelihoods, strict=True)
            chosen = [part[t, token] for (_, a), part in parts for t, token in enumerate(a)]
            loss = loss - settings["ptx_coef"] * sum(chosen) / len(chosen)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= LR * gradient


def plain_scores(ppo: PPOTrainer, completions: list[list[int]], finished: list[bool]) -> list[float]:
    """The score of each completion under the settings of `ppo`, in plain numbers."""
    args = ppo.args
    scores = []
    for completion, end in zip(completions, finished, strict=True):
        words = [token for token in (completion[:-1] if end else completion) if token != EOS]
        share = words.count(11) / max(1, len(words))  # w7 has id 11
        scores.append(2.0 * share - 0.1 * len(completion) if args.reward_weights else share)
    if args.normalize_rewards:
        mean = sum(scores) / len(scores)
        deviation = math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores))
        scores = [(s - mean) / deviation for s in scores]
    if args.reward_clip:
        scores = [min(max(s, -args.reward_clip), args.reward_clip) for s in scores]
    penalty = args.missing_eos_penalty or 0.0
    scores = [
        s - penalty * (not end) - args.length_penalty * len(c)
        for s, c, end in zip(scores, completions, finished, strict=True)
    ]
    if ppo.cost_multiplier is None:
        return scores
    return [(s - 0.8 * 0.3 * len(c)) / 1.8 for s, c in zip(scores, completions, strict=True)]


def length(completion_ids: list[list[int]], **columns: object) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


DEMONSTRATIONS = [
    {"prompt": "w1 w2", "completion": " w3 w4"},
    {"prompt": "w5", "completion": " w6 w7 w8 w9"},
    {"prompt": "w9 w8 w7", "completion": " w6"},
]

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "k3": {"kl_estimator": "k3"},
    "entropy": {"entropy_coef": 0.3},
    "critic": {"critic": True},
    "cost": {"cost": True, "cost_multiplier": 0.8, "missing_eos_penalty": 0.7},
    "kl in the loss": {"kl_in_loss": True},
    "whitened rewards": {"whiten_rewards": True},
    "demonstrations": {"ptx_coef": 0.7, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "rewards": {
        "reward_weights": [2.0, -0.1],
        "normalize_rewards": True,
        "reward_clip": 1.2,
        "missing_eos_penalty": 0.7,
        "length_penalty": 0.05,
    },
    "everything": {
        "critic": True,
        "entropy_coef": 0.3,
        "kl_estimator": "k3",
        "reward_weights": [2.0, -0.1],
        "normalize_rewards": True,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "activation_checkpointing": True,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_update_equals_a_plain_implementation(tmp_path: Path, case: str) -> None:
    """Two epochs of two steps, with a reference that is not the policy: parameter by parameter."""
    settings = {
        "num_rollouts": 1,
        "per_device_train_batch_size": 4,
        "kl_coef": KL_COEF,
        "gamma": GAMMA,
        "lam": LAM,
        "vf_coef": VF_COEF,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "seed": 5,
        "stop_token_ids": STOP,
    }
    settings |= CASES[case]
    with_value_model, with_cost = settings.pop("critic", False), settings.pop("cost", False)
    model, critic, head = tiny_model(1), tiny_classifier(3), nn.Linear(32, 1)
    ppo = PPOTrainer(
        tiny_model(1),
        config(tmp_path, **settings),
        train_dataset=prompts(),
        processing_class=tiny_tokenizer(),
        reward_funcs=[share_of("w7"), length] if "reward_weights" in settings else share_of("w7"),
        ref_model=tiny_model(2),
        value_model=tiny_classifier(3) if with_value_model else None,
        demonstrations=DEMONSTRATIONS,
        cost_func=(lambda **columns: [0.3 * n for n in length(**columns)]) if with_cost else None,
    )
    if with_value_model:
        net, values = with_critic(model, critic), critic
    else:
        nn.init.normal_(ppo.model.value_head.weight, std=0.3)
        head.load_state_dict(ppo.model.value_head.state_dict())
        net, values = with_head(model, head), head

    rollout = ppo.collect_rollout(0)
    assert rollout.finished.any() and not rollout.finished.all()
    completions = rollout.completion_lists()
    scores = plain_scores(ppo, completions, rollout.finished.tolist())
    rows = []
    for i, completion in enumerate(completions):
        prompt = rollout.prompt_ids[i][rollout.prompt_mask[i]].tolist()
        rows.append((prompt, completion, scores[i]))
    steps = list(minibatch_rows(8, 4, num_epochs=2, seed=5, rollout=0))
    parameters = [*model.parameters(), *values.parameters()]
    shown = [[]] * len(steps)
    if ppo.demonstrations is not None:
        shown = [[ppo.demonstrations.rows[i] for i in ppo.demonstrations.of_step(k, 4)] for k in range(len(steps))]
        assert {len(answer) for step in shown for _, answer in step} == {2, 3, 5}  # of different length
    reference_update(net, parameters, tiny_model(2), rows, steps, settings, shown)

    ppo.train()
    (row,) = [row for row in ppo.state.log_history if "rollout" in row]
    assert row["policy/clipfrac_avg"] > 0.05 and row["val/clipfrac_avg"] > 0  # the clips took part
    assert_moved_alike(ppo.model.policy, model, tiny_model(1))
    if with_value_model:
        assert_moved_alike(ppo.model.value_model, critic, tiny_classifier(3))
    else:
        torch.testing.assert_close(ppo.model.value_head.weight, head.weight, atol=2e-5, rtol=0)
        torch.testing.assert_close(ppo.model.value_head.bias, head.bias, atol=2e-5, rtol=0)


def assert_moved_alike(got: nn.Module, expected: nn.Module, start: nn.Module) -> None:
    before = dict(start.named_parameters())
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(got.get_parameter(name), parameter, atol=2e-5, rtol=0)
        assert not torch.allclose(parameter, before[name], atol=1e-3), name
