from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    PreTrainedConfig,
)

from shfcas.training.ppo.losses import completion_mask
from shfcas.training.ppo.reference import Reference, policy_and_reference
from shfcas.training.ppo.rollout import generate, prompt_rows
from shfcas.training.ppo.value_head import PolicyWithValue, has_plain_head, hidden_states
from tests.support.ppo_tiny import COMPLETIONS, EOS, PROMPTS, lora, rollout, tiny_model

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def naive_logprobs(model: nn.Module, prompt: list[int], completion: list[int], temperature: float) -> Tensor:
    """One sequence, no padding, the whole softmax."""
    ids = torch.tensor([prompt + completion])
    log_softmax = (model(ids).logits[0] / temperature).log_softmax(-1)
    return torch.stack([log_softmax[len(prompt) + t - 1, token] for t, token in enumerate(completion)])


class ScaledLlama(type(tiny_model())):
    """A model whose logits are not just its head's output."""

    def forward(self, *args: object, **kwargs: object) -> object:
        output = super().forward(*args, **kwargs)
        output.logits = 3.0 * output.logits.tanh()
        return output


@pytest.mark.parametrize("kind", ["plain", "lora", "adapted head", "scaled"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_one_sequence_at_a_time(kind: str, temperature: float) -> None:
    policy = tiny_model()
    if kind in ("lora", "adapted head"):
        config = lora() if kind == "lora" else LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
        policy, _ = policy_and_reference(policy, None, config)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    if kind == "scaled":
        policy.__class__ = ScaledLlama
    model = PolicyWithValue(policy, temperature)
    assert model.plain_head == (kind in ("plain", "lora"))
    nn.init.normal_(model.value_head.weight)
    batch = rollout()
    output = model(**batch.model_inputs([0, 1, 2]))
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        expected = naive_logprobs(policy, prompt, completion, temperature)
        torch.testing.assert_close(output.logprobs[row, : len(completion)], expected, atol=1e-5, rtol=0)
        alone = model(**batch.model_inputs([row]))
        assert alone.logprobs.shape == (1, len(completion))
        for whole, single in zip(
            output[:3], alone[:3], strict=True
        ):  # the last is of demonstrations, and none is given
            torch.testing.assert_close(whole[row, : len(completion)], single[0], atol=1e-5, rtol=0)
            assert not whole[row, len(completion) :].any()
    log_softmax = (policy(torch.tensor([PROMPTS[0]])).logits[0, -1] / temperature).log_softmax(-1)
    entropy = -(log_softmax.exp() * log_softmax).sum()
    torch.testing.assert_close(output.entropy[0, 0], entropy, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "plain_head"),
    [
        (GPTNeoXConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=2, vocab_size=64), True),
        (GPT2Config(n_embd=32, n_head=2, n_layer=2, vocab_size=64), True),
        (BloomConfig(hidden_size=32, n_head=2, n_layer=2, vocab_size=64), True),  # takes no position ids
        (Gemma2Config(**SMALL, head_dim=16, final_logit_softcapping=0.5), False),
        (GraniteConfig(**SMALL, logits_scaling=4.0), False),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_logprobs_of_other_architectures(config: PreTrainedConfig, plain_head: bool) -> None:
    torch.manual_seed(0)
    model = PolicyWithValue(AutoModelForCausalLM.from_config(config).eval())
    assert model.plain_head == plain_head
    output = model(**rollout().model_inputs([0, 1, 2]))
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        expected = naive_logprobs(model.policy, prompt, completion, 1.0)
        torch.testing.assert_close(output.logprobs[row, : len(completion)], expected, atol=1e-5, rtol=0)


def test_values_read_the_state_before_each_token() -> None:
    model = PolicyWithValue(tiny_model())
    nn.init.normal_(model.value_head.weight)
    values = model(**rollout().model_inputs([0, 1, 2])).values
    hidden = model.policy(torch.tensor([PROMPTS[1] + COMPLETIONS[1]]), output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(values[1], model.value_head(hidden[0, 3:8]).squeeze(-1), atol=1e-5, rtol=0)


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest result of any operation inside, also in the ops and in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(part.numel() for part in tree_leaves(result) if torch.is_tensor(part))])
        return result


def wide_rollout(length: int) -> dict[str, Tensor]:
    """Two answers of some tokens each to a prompt of one token."""
    ids = torch.arange(2 * (length + 1)).reshape(2, -1) % 64
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": torch.ones_like(ids[:, 1:])}


def test_the_logits_of_a_training_step_never_exist_as_a_whole() -> None:
    """600 tokens of 16,384 logits are 9.8 million numbers; a portion of them is 2 million."""
    model = PolicyWithValue(tiny_model(vocab_size=16_384), entropy_gradient=True)
    with LargestTensor() as seen:
        output = model(**wide_rollout(300))
        (output.logprobs.sum() + output.entropy.sum()).backward()
    assert seen.elements <= 512 * 4096 < 600 * 16_384 / 4


def test_other_heads_make_their_logits_once_in_the_precision_of_the_model() -> None:
    policy = tiny_model(vocab_size=1024).bfloat16()
    policy.__class__ = ScaledLlama
    inputs, span = wide_rollout(40), 2 * 41 * 1024
    made = []

    class Float32OfTheSpan(LargestTensor):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = super().__torch_dispatch__(function, types, args, kwargs)
            made.extend(
                part.numel() for part in tree_leaves(result) if torch.is_tensor(part) and part.dtype == torch.float32
            )
            return result

    with Float32OfTheSpan() as seen:
        PolicyWithValue(policy)(**inputs).logprobs.sum().backward()
    assert seen.elements == span and max(made) < span / 4


def test_the_head_computes_in_the_precision_of_autocast() -> None:
    """So a sampled token has the log-probability that bfloat16 logits give it, which float32 ones do not."""
    policy = tiny_model()
    model, inputs = PolicyWithValue(policy), rollout().model_inputs([0, 1, 2])
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        got = model(**inputs).logprobs
        hidden = hidden_states(policy, inputs["input_ids"], inputs["attention_mask"])
        logits = policy.lm_head(hidden)[:, -got.shape[1] - 1 : -1]
        assert logits.dtype == torch.bfloat16
    targets = inputs["input_ids"][:, -got.shape[1] :]
    expected = logits.float().log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    torch.testing.assert_close(got, expected * inputs["completion_mask"], atol=1e-5, rtol=0)


def test_dropout_is_off_in_training_mode() -> None:
    policy, _ = policy_and_reference(tiny_model(attention_dropout=0.5), None, lora())
    model = PolicyWithValue(policy)
    inputs = rollout().model_inputs([0, 1, 2])
    first = model.eval()(**inputs).logprobs
    torch.testing.assert_close(model.train()(**inputs).logprobs, first, atol=1e-6, rtol=0)


def test_reference_is_the_policy_without_its_adapter() -> None:
    policy, ref_model = policy_and_reference(tiny_model(), None, lora())
    assert ref_model is None
    model = PolicyWithValue(policy)
    inputs = rollout().model_inputs([0, 1, 2])
    before = model(**inputs).logprobs
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    assert not torch.allclose(model(**inputs).logprobs, before, atol=0.1)
    torch.testing.assert_close(Reference(model, None).logprobs(**inputs), before.detach())


def test_has_plain_head() -> None:
    model = tiny_model()
    assert has_plain_head(model)
    model.__class__ = ScaledLlama
    assert not has_plain_head(model)


def sample(model: nn.Module, seed: int = 0, **changes: object) -> tuple[Tensor, Tensor, Tensor]:
    settings = {"eos_ids": [EOS], "pad_id": EOS, "max_new_tokens": 6, "temperature": 1.0, "batch_size": 2}
    seeds = [1000 * seed + i for i in range(len(PROMPTS) * 20)]
    return generate(model, PROMPTS * 20, **settings | changes, seeds=seeds)


def test_generate_is_determined_by_its_seed_and_leaves_the_random_state_alone() -> None:
    model = tiny_model()
    state = torch.random.get_rng_state()
    first, again, other = sample(model), sample(model), sample(model, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])
    ids, mask, finished = first
    expected_mask, expected_finished = completion_mask(ids, [EOS])
    assert finished.any() and not finished.all()
    assert torch.equal(mask, expected_mask) and torch.equal(finished, expected_finished)


def test_an_answer_depends_on_its_seed_and_not_on_its_batch() -> None:
    model = tiny_model()
    together, apart = sample(model, batch_size=60), sample(model, batch_size=7)
    for first, second in zip(together, apart, strict=True):
        assert torch.equal(first, second)
    settings = {"eos_ids": [EOS], "pad_id": EOS, "max_new_tokens": 6, "temperature": 0.7, "batch_size": 4}
    same = generate(model, [PROMPTS[0]] * 3, **settings, seeds=[5, 6, 5])
    assert torch.equal(same[0][0], same[0][2]) and not torch.equal(same[0][0], same[0][1])


def test_generate_samples_the_whole_distribution() -> None:
    """The model's own sampling settings (here: greedy-like and an EOS ban) must not leak in."""
    model = tiny_model(initializer_range=0.01)
    model.generation_config.top_k = 1
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.suppress_tokens = list(range(1, 64))
    own = model.generation_config
    ids, mask, _ = sample(model, batch_size=60)
    assert model.generation_config is own
    assert len(ids[mask].unique()) > 50


def test_generate_with_several_stop_ids() -> None:
    ids, mask, finished = sample(tiny_model(initializer_range=0.01), eos_ids=list(range(32)), batch_size=60)
    last = ids.gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1)
    assert torch.equal(last < 32, finished) and finished.float().mean() > 0.8


def test_prompt_rows_pass_over_the_data_again_and_again() -> None:
    rows = [row for k in range(6) for row in prompt_rows(k, 4, num_prompts=8, seed=3)]
    assert sorted(rows[:8]) == sorted(rows[8:16]) == sorted(rows[16:]) == list(range(8))
    assert rows[:8] != rows[8:16]
    assert prompt_rows(2, 4, 8, seed=3) == rows[8:12]
    assert sorted(prompt_rows(0, 16, 8, seed=3)) == sorted([*range(8), *range(8)])
