from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaForSequenceClassification,
)

from shfcas.training.ppo.trainer import PPOTrainer
from shfcas.training.ppo.value_head import PolicyWithValue
from shfcas.training.ppo.value_model import make_value_model
from tests.support.ppo_tiny import (
    COMPLETIONS,
    EOS,
    PROMPTS,
    config,
    lora,
    prompts,
    rollout,
    share_of,
    tiny_classifier,
    tiny_model,
    tiny_tokenizer,
)

CPU = torch.device("cpu")


def trainer(folder: Path, value_model: object, **changes: object) -> PPOTrainer:
    extra = {name: changes.pop(name) for name in ("peft_config", "reward_funcs", "model") if name in changes}
    return PPOTrainer(
        extra.pop("model", None) or tiny_model(),
        config(folder, **changes),
        train_dataset=prompts(),
        processing_class=tiny_tokenizer(),
        reward_funcs=extra.pop("reward_funcs", share_of("w7")),
        value_model=value_model,
        **extra,
    )


def made(value_model: object) -> nn.Module:
    return make_value_model(value_model, tiny_model(), tiny_tokenizer(), CPU)


def test_values_are_the_scores_of_prefixes() -> None:
    """What a classifier says of a prefix is the value of the token that follows it, whatever the padding."""
    critic = tiny_classifier(3)
    model = PolicyWithValue(tiny_model(), value_model=made(critic))
    output = model(**rollout().model_inputs([0, 1, 2]))
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        prefixes = [[*prompt, *completion[:t]] for t in range(len(completion))]
        expected = torch.stack([critic(torch.tensor([prefix])).logits[0, 0] for prefix in prefixes])
        torch.testing.assert_close(output.values[row, : len(completion)], expected, atol=1e-5, rtol=0)
        assert not output.values[row, len(completion) :].any()
    assert not hasattr(model, "value_head")


def test_a_language_model_gets_a_head_of_zeros() -> None:
    policy = tiny_model(4)
    critic = made(policy)
    assert isinstance(critic, LlamaForSequenceClassification)
    assert critic.model is policy.model and not critic.score.weight.any()
    values = PolicyWithValue(tiny_model(), value_model=critic)(**rollout().model_inputs([0, 1, 2])).values
    assert not values.any()


def test_a_bare_trunk_of_another_architecture() -> None:
    trunk = GPT2Model(GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=64, pad_token_id=EOS))
    critic = made(trunk)
    assert critic.transformer is trunk
    assert not [name for name, parameter in critic.named_parameters() if parameter.is_meta]


def test_a_head_in_bfloat16_becomes_float32() -> None:
    critic = made(tiny_classifier(3).bfloat16())
    assert critic.score.weight.dtype == torch.float32 and critic.model.norm.weight.dtype == torch.bfloat16
    output = PolicyWithValue(tiny_model().bfloat16(), value_model=critic)(**rollout().model_inputs([0, 1, 2]))
    assert {part.dtype for part in output if part is not None} == {torch.float32}


@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_by_name(tmp_path: Path, kind: str) -> None:
    original = tiny_classifier(3) if kind == "classifier" else tiny_model(3)
    original.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    critic = made(str(tmp_path))
    assert torch.equal(critic.model.norm.weight, original.model.norm.weight)
    assert torch.equal(critic.model.layers[1].mlp.up_proj.weight, original.model.layers[1].mlp.up_proj.weight)
    assert critic.score.weight.any() == (kind == "classifier")
    other = tiny_tokenizer()
    other.add_tokens(["extra"])
    with pytest.raises(ValueError, match="expected the vocabulary of the policy"):
        make_value_model(str(tmp_path), tiny_model(), other, CPU)


def test_what_cannot_be_a_value_model(tmp_path: Path) -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = BertConfig(vocab_size=64, num_labels=1, **small)
    with pytest.raises(ValueError, match="each of the policy's 64 tokens, got 32"):
        made(tiny_model(vocab_size=32))
    with pytest.raises(ValueError, match=r"expected one output .*got 2"):
        made(tiny_classifier(0, num_labels=2))
    for model in (BertForSequenceClassification(bert), BertModel(bert)):
        with pytest.raises(ValueError, match="expected an architecture with a classifier head named score"):
            made(model)
    blind = tiny_classifier(0)
    blind.model.forward = lambda input_ids, **arguments: type("Output", (), {"last_hidden_state": blind.model.norm(
        blind.model.embed_tokens(input_ids).cumsum(1).flip(1))})()  # fmt: skip
    with pytest.raises(ValueError, match="expected a causal model"):
        made(blind)
    model = tiny_model()
    with pytest.raises(ValueError, match="expected a separate model, got the policy"):
        trainer(tmp_path, model, model=model)
    reward = tiny_classifier(0)
    with pytest.raises(ValueError, match="got a model of reward_funcs"):
        trainer(tmp_path, reward, reward_funcs=[reward, share_of("w7")])
    with pytest.raises(ValueError, match=r"do not fit into the model's context of 8 tokens"):
        trainer(tmp_path, tiny_classifier(0, max_position_embeddings=8))


@pytest.mark.parametrize("adapter", [False, True])
def test_training_moves_all_of_the_value_model_and_fits_the_returns(tmp_path: Path, adapter: bool) -> None:
    settings = {"num_rollouts": 15, "learning_rate": 3e-3, "lam": 1.0, "cliprange_value": 10.0, "vf_coef": 1.0}
    ppo = trainer(tmp_path, tiny_classifier(3), peft_config=lora() if adapter else None, **settings)
    ppo.train()
    start = dict(tiny_classifier(3).named_parameters())
    for name, parameter in ppo.model.value_model.named_parameters():
        assert not torch.equal(parameter, start[name]), name
    losses = [row["loss/value_avg"] for row in ppo.state.log_history if "loss" in row]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_a_saved_value_model_is_a_classifier(tmp_path: Path) -> None:
    ppo = trainer(tmp_path, tiny_classifier(3), peft_config=lora())
    ppo.train()
    ppo.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "value_head.safetensors").exists()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved" / "value_model")
    for name, expected in ppo.model.value_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], expected)
    assert made(str(tmp_path / "saved" / "value_model")).score.weight.any()
