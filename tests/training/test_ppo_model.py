import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    PreTrainedConfig,
)

from shfcas.training.ppo import value_head
from shfcas.training.ppo.losses import completion_mask
from shfcas.training.ppo.reference import Reference, policy_and_reference
from shfcas.training.ppo.rollout import generate, prompt_rows
from shfcas.training.ppo.value_head import PolicyWithValue, has_plain_head
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


@pytest.mark.parametrize("kind", ["plain", "lora", "scaled", "chunked"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_one_sequence_at_a_time(kind: str, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_model()
    if kind == "lora":
        policy, _ = policy_and_reference(policy, None, lora())
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    if kind == "scaled":
        policy.__class__ = ScaledLlama
    if kind == "chunked":
        monkeypatch.setattr(value_head, "MAX_LOGITS", 3 * 64)
    model = PolicyWithValue(policy, temperature)
    assert model.plain_head == (kind != "scaled")
    nn.init.normal_(model.value_head.weight)
    batch = rollout()
    output = model(**batch.model_inputs([0, 1, 2]))
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        expected = naive_logprobs(policy, prompt, completion, temperature)
        torch.testing.assert_close(output.logprobs[row, : len(completion)], expected, atol=1e-5, rtol=0)
        alone = model(**batch.model_inputs([row]))
        assert alone.logprobs.shape == (1, len(completion))
        for whole, single in zip(output, alone, strict=True):
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


def test_chunking_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients() -> list[Tensor]:
        model = PolicyWithValue(tiny_model())
        model(**rollout().model_inputs([0, 1, 2])).logprobs.sum().backward()
        return [p.grad for p in model.policy.parameters()]

    whole = gradients()
    monkeypatch.setattr(value_head, "MAX_LOGITS", 64)
    for a, b in zip(whole, gradients(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


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
