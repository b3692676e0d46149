import dataclasses
import math
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import HfArgumentParser, LlamaConfig, LlamaForSequenceClassification

from shfcas.training.ppo.options import PPOBaseConfig
from shfcas.training.ppo.reference import policy_and_reference
from shfcas.training.ppo.trainer import PPOConfig, PPOTrainer
from shfcas.utils.errors import UsageError
from tests.support.ppo_tiny import config, lora, prompts, share_of, tiny_model, tiny_tokenizer


def trainer(folder: Path, **changes: object) -> PPOTrainer:
    arguments = {
        "model": tiny_model(),
        "args": config(folder),
        "train_dataset": prompts(),
        "processing_class": tiny_tokenizer(),
        "reward_funcs": share_of("w7"),
    }
    return PPOTrainer(**arguments | changes)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rollout_batch_size": 10}, r"rollout_batch_size: expected a multiple of .* \(4\), got 10"),
        ({"gradient_accumulation_steps": 3}, r"rollout_batch_size: expected a multiple of .* \(12\), got 8"),
        ({"num_rollouts": 0}, "num_rollouts: expected at least 1, got 0"),
        ({"kl_estimator": "k2"}, "kl_estimator: expected one of k1, k3, got 'k2'"),
        ({"kl_target": 0.0}, "kl_target: expected above 0, got 0.0"),
        ({"temperature": 0.0}, "temperature: expected above 0, got 0.0"),
        ({"kl_coef": -0.1}, "kl_coef: expected at least 0, got -0.1"),
        ({"save_rollouts": -1}, "save_rollouts: expected at least 0, got -1"),
        ({"eval_strategy": "steps"}, "eval_strategy: expected 'no', got 'steps'; set eval_rollouts"),
        (
            {"load_best_model_at_end": True},
            "load_best_model_at_end: expected False, got True; set early",
        ),
        ({"entropy_coef": -0.1}, "entropy_coef: expected at least 0, got -0.1"),
        ({"length_penalty": -0.1}, "length_penalty: expected at least 0, got -0.1"),
        ({"early_stopping_patience": 0, "eval_rollouts": 1}, "early_stopping_patience: expected at least 1, got 0"),
        ({"early_stopping_patience": 2}, "eval_rollouts: expected at least 1 with early_stopping_patience, got 0"),
        ({"save_only_model": True}, "save_only_model: expected False, got True; a checkpoint must be resumable"),
    ],
)
def test_settings(tmp_path: Path, setting: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **setting)


def test_every_bound_of_the_options_holds_for_the_trainer(tmp_path: Path) -> None:
    for field in dataclasses.fields(PPOBaseConfig):
        for key in {"ge", "gt", "le"} & field.metadata.keys():
            value = field.metadata[key] + {"ge": -1, "gt": 0, "le": 1}[key]
            wrong = [value] if field.name == "stop_token_ids" else value
            with pytest.raises(UsageError, match=f"^{field.name}: expected .*, got {value}"):
                config(tmp_path, **{field.name: wrong})


def test_settings_from_a_command_line_in_the_way_of_transformers(tmp_path: Path) -> None:
    flags = f"--output_dir {tmp_path} --use_cpu true --kl_target 3 --kl_estimator k3 --whiten_advantages false"
    flags += " --reward_weights 1 0.5 --stop_token_ids 3 4 --early_stopping_patience 2 --eval_rollouts 5"
    (args,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(flags.split())
    assert (args.kl_target, args.kl_estimator, args.whiten_advantages) == (3.0, "k3", False)
    assert (args.reward_weights, args.stop_token_ids) == ([1.0, 0.5], [3, 4])
    assert (args.early_stopping_patience, args.eval_rollouts, args.learning_rate) == (2, 5, 1e-5)


def test_derived_settings_are_not_arguments(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="max_steps"):
        config(tmp_path, max_steps=10)
    args = config(tmp_path, num_rollouts=3, num_ppo_epochs=4, save_rollouts=2)
    assert (args.steps_per_rollout, args.max_steps, args.logging_steps, args.save_steps) == (8, 24, 8, 16)
    assert args.report_to == [] and not args.bf16


def test_every_setting_has_a_help_text() -> None:
    own = [field for field in config("x").__dataclass_fields__.values() if not field.name.startswith("_")]
    assert not [field.name for field in own if not field.metadata.get("help")]


def test_dataset(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no 'prompt' column; its columns are \['text'\]"):
        trainer(tmp_path, train_dataset=Dataset.from_dict({"text": ["w1"]}))
    with pytest.raises(ValueError, match=r"expected a datasets\.Dataset, got list"):
        trainer(tmp_path, train_dataset=[{"prompt": "w1"}])
    with pytest.raises(ValueError, match="train_dataset is empty"):
        trainer(tmp_path, train_dataset=Dataset.from_dict({"prompt": []}))
    with pytest.raises(ValueError, match="row 1: the prompt is empty"):
        trainer(tmp_path, train_dataset=Dataset.from_dict({"prompt": ["w1", ""]}))


def test_prompts_are_never_truncated(tmp_path: Path) -> None:
    dataset = Dataset.from_dict({"prompt": ["w1", "w2 " * 60]})
    with pytest.raises(ValueError, match="row 1: the prompt has 60 tokens, more than max_prompt_length=16"):
        trainer(tmp_path, args=config(tmp_path, max_prompt_length=16), train_dataset=dataset)
    with pytest.raises(ValueError, match=r"row 1: a prompt of 60 tokens .* context of 64 tokens"):
        trainer(tmp_path, train_dataset=dataset)


def test_tokenizer(tmp_path: Path) -> None:
    tokenizer, model = tiny_tokenizer(template=False), tiny_model()
    messages = Dataset.from_dict({"prompt": [[{"role": "user", "content": "w1"}]]})
    with pytest.raises(ValueError, match="since the tokenizer has no chat template, got messages"):
        trainer(tmp_path, processing_class=tokenizer, train_dataset=messages)
    tokenizer.eos_token = model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="has an EOS token; set stop_token_ids"):
        trainer(tmp_path, model=model, processing_class=tokenizer)


def test_models(tmp_path: Path) -> None:
    adapted, _ = policy_and_reference(tiny_model(), None, lora())
    with pytest.raises(ValueError, match=r"adapter of the PeftModel.*merge_and_unload.*or pass ref_model"):
        trainer(tmp_path, model=adapted)
    with pytest.raises(ValueError, match="already has an adapter"):
        trainer(tmp_path, model=adapted, peft_config=lora())
    trainer(tmp_path, model=adapted, ref_model=tiny_model())
    for parameter in adapted.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="expected trainable parameters, got none"):
        trainer(tmp_path, model=adapted, ref_model=tiny_model())
    model = tiny_model()
    with pytest.raises(ValueError, match="ref_model: expected a separate model"):
        trainer(tmp_path, model=model, ref_model=model)
    loud = lora()
    loud.init_lora_weights = False
    with pytest.raises(ValueError, match="expected an adapter that initially leaves the policy unchanged"):
        trainer(tmp_path, peft_config=loud)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0] * 7, r"broken \(.*\): expected 8 rewards, one per answer, got 7"),
        ([1.0, math.nan, *[1.0] * 6], "'broken' returned nan for completion 1"),
        ([*[1.0] * 7, math.inf], "'broken' returned inf for completion 7"),
        ([None] * 8, "every reward function returned None for completion 0"),
    ],
)
def test_reward_results(tmp_path: Path, result: list[float | None], message: str) -> None:
    def broken(**columns: object) -> list[float | None]:
        return result

    ppo = trainer(tmp_path, reward_funcs=broken)
    with pytest.raises(ValueError, match=message):
        ppo.train()


def test_reward_functions(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 'share' twice"):
        trainer(tmp_path, reward_funcs=[share_of("w1"), share_of("w2")])
    with pytest.raises(ValueError, match="got 0 reward_funcs"):
        trainer(tmp_path, reward_funcs=[])
    with pytest.raises(ValueError, match="got 1 reward_funcs and 2 reward_processing_classes"):
        trainer(tmp_path, reward_processing_classes=[None, None])
    settings = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    settings |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    with pytest.raises(ValueError, match=r"expected one output .*got 2"):
        trainer(tmp_path, reward_funcs=LlamaForSequenceClassification(LlamaConfig(**settings, num_labels=2)))
    with pytest.raises(ValueError, match="needs its tokenizer in reward_processing_classes"):
        trainer(tmp_path, reward_funcs=LlamaForSequenceClassification(LlamaConfig(**settings, num_labels=1)))
