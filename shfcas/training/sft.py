"""Supervised fine-tuning of the policy on good answers, with TRL's SFTTrainer (loss on the answer only)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.chat import check_prompt, completion_message, encode_answer, plain_text
from shfcas.config import option
from shfcas.errors import UserError
from shfcas.files import read_jsonl
from shfcas.models import load_policy, save_model
from shfcas.training.common import merged, supervised_options, train
from shfcas.training.lora import LoraSettings


@dataclass
class SFTSettings:
    """The supervised stage."""

    num_train_epochs: float = option(2.0, "passes over the demonstrations")
    learning_rate: float = option(2e-4, "peak learning rate (cosine, 5 % warm-up)")
    batch_size: int = option(16, "demonstrations a step")
    max_length: int = option(512, "tokens of prompt and answer; longer ones are an error")
    checkpoint_steps: int = option(0, "keep a resumable checkpoint every so many steps (0: none)")
    lora: LoraSettings = option(LoraSettings, "adapters")


def read_demonstrations(path: str | Path) -> list[dict[str, Any]]:
    """Reads JSON lines with `prompt` and `completion` (text); an error names the row."""
    rows = read_jsonl(path)
    for index, row in enumerate(rows):
        check_prompt(row.get("prompt"), f"{path}: row {index}")
        if not isinstance(row.get("completion"), str) or not row["completion"].strip():
            raise UserError(f"{path}: row {index} has no completion")
    if not rows:
        raise UserError(f"{path}: no demonstrations in it")
    return rows


def check_lengths(demonstrations: Sequence[dict[str, Any]], tokenizer: Any, max_length: int) -> None:
    """Names the first demonstration that is too long to be learned whole."""
    for index, row in enumerate(demonstrations):
        if isinstance(row["prompt"], str):  # an end token follows
            ids = [*tokenizer(row["prompt"] + row["completion"], verbose=False)["input_ids"], tokenizer.eos_token_id]
        else:
            ids = encode_answer(tokenizer, row["prompt"], row["completion"], 1 << 30)
        if len(ids) > max_length:
            raise UserError(
                f"demonstration {index} has {len(ids)} tokens, more than sft.max_length {max_length}: "
                f"{plain_text(row['prompt'])[:60]!r}; raise it or shorten the demonstration"
            )


def train_sft(
    policy: str,
    demonstrations: Sequence[dict[str, Any]],
    settings: SFTSettings,
    output: Path,
    work_dir: Path,
    seed: int,
) -> list[dict[str, float]]:
    """Fine-tunes `policy` on the demonstrations and saves a plain model (adapters merged) in `output`.

    Returns:
        The loss rows of the trainer.
    """
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = load_policy(policy)
    check_lengths(demonstrations, tokenizer, settings.max_length)
    set_seed(seed)
    data = Dataset.from_list(
        [
            {"prompt": row["prompt"], "completion": completion_message(row["prompt"], row["completion"])}
            for row in demonstrations
        ]
    )
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            num_train_epochs=settings.num_train_epochs,
            learning_rate=settings.learning_rate,
            per_device_train_batch_size=settings.batch_size,
            max_length=settings.max_length,
            warmup_steps=0.05,
            **supervised_options(work_dir, seed, settings.checkpoint_steps),
        ),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=settings.lora.peft_config(),
    )
    history = train(trainer, work_dir, "supervised fine-tuning")
    save_model(output, merged(trainer), tokenizer)
    return history
