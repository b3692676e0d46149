"""Supervised fine-tuning of the policy on good answers, with TRL's SFTTrainer (loss on the answer only)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from shfcas.data.chat import encode_demonstration, end_token_ids
from shfcas.data.formats import Columns, demonstration_row, missing_column
from shfcas.data.messages import check_prompt, plain_text
from shfcas.data.reading import read_rows
from shfcas.models.loading import context_length, load_policy
from shfcas.training.common import on_one_device, save_policy, supervised_options, train
from shfcas.training.lora import AdaptedRate, AdapterConfig, DefaultRates
from shfcas.training.optimizer import SupervisedConfig
from shfcas.utils import distributed
from shfcas.utils.config import option, with_default
from shfcas.utils.errors import UserError


@dataclass
class SFTStageConfig(AdaptedRate, SupervisedConfig):
    """Supervised fine-tuning."""

    RATES: ClassVar = DefaultRates(2e-4, 2e-5)

    num_train_epochs: float = option(2.0, "passes over the demonstrations", ge=0, common=True)
    learning_rate: float | None = RATES.option("peak learning rate, on a cosine schedule")
    warmup_steps: float = with_default(SupervisedConfig, "warmup_steps", 0.05)
    batch_size: int = option(16, "demonstrations per optimizer step", ge=1, common=True)
    max_length: int = option(512, "maximum tokens of prompt and answer; a longer demonstration is an error", ge=1)
    checkpoint_steps: int = option(0, "optimizer steps between resumable checkpoints (0: none)", ge=0)
    lora: AdapterConfig = option(AdapterConfig, "adapters")


def read_demonstrations(path: str | Path, columns: Columns | None = None) -> list[dict[str, Any]]:
    """Reads rows with `prompt` and `completion` (text), or in another layout of `shfcas.data.formats`.

    Args:
        path: see `shfcas.data.reading.read_rows`.
        columns: names of the columns in the user's data, by ours.

    Raises:
        UserError: a row has no prompt or no completion; the message names it.
    """
    rows = []
    for index, given in enumerate(read_rows(path, (columns or {}).values())):
        where, row = f"{path}: row {index}", demonstration_row(given, columns)
        for name in ("prompt", "completion"):
            if name not in row:
                raise missing_column(name, row, where)
        row["prompt"] = check_prompt(row["prompt"], where)
        if not isinstance(row["completion"], str) or not row["completion"].strip():
            raise UserError(f"{where} has no completion; expected text, or one assistant turn")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: no demonstrations in it")
    return rows


def encode_demonstrations(
    demonstrations: Sequence[dict[str, Any]], tokenizer: Any, end_ids: set[int], max_length: int
) -> list[dict[str, list[int]]]:
    """Returns token ids and labels: -100 on the prompt, so that only the answer with its end token is learned.

    The prompt's tokens are exactly those that the policy is later sampled from.

    Raises:
        UserError: a demonstration is longer than `max_length`, or its template refuses it; the row is named.
    """
    rows = []
    for index, row in enumerate(demonstrations):
        try:
            prompt, answer = encode_demonstration(
                tokenizer, row["prompt"], row["completion"], end_ids, row.get("completion_ids")
            )
        except UserError as error:
            raise UserError(f"demonstration {index}: {error}") from error
        length = len(prompt) + len(answer)
        if length > max_length:
            raise UserError(
                f"demonstration {index} has {length} tokens, more than the {max_length} that sft.max_length and the "
                f"model's context allow: {plain_text(row['prompt'])[:60]!r}; shorten it, or raise sft.max_length"
            )
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return rows


def train_sft(
    policy: str,
    demonstrations: Sequence[dict[str, Any]],
    *,
    settings: SFTStageConfig,
    output: Path,
    work_dir: Path,
    seed: int,
    chat_template: str | None = None,
) -> list[dict[str, float]]:
    """Fine-tunes `policy` on the demonstrations and saves it in `output`.

    Args:
        policy: a model name, also of a raw base model.
        demonstrations: rows with `prompt` and `completion`.
        settings: see `SFTStageConfig`.
        output: the folder of the new policy.
        work_dir: checkpoints; training resumes from the newest complete one.
        seed: seed of the adapters, the order of the demonstrations and dropout.
        chat_template: for a policy without one: `plain`, or a Jinja file. It is saved with the new policy.

    Returns:
        Rows of the trainer's log that hold a loss.
    """
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    distributed.start()
    model, tokenizer = load_policy(policy, chat_template, settings.lora.base_dtype)
    end_ids = end_token_ids(model, tokenizer)
    max_length = min(settings.max_length, context_length(model))
    data = Dataset.from_list(encode_demonstrations(demonstrations, tokenizer, end_ids, max_length))
    set_seed(seed)
    try:
        trainer = SFTTrainer(
            model=model,
            args=on_one_device(
                SFTConfig(
                    num_train_epochs=settings.num_train_epochs,
                    learning_rate=settings.peak_learning_rate,
                    **settings.step_options("sft.batch_size / gradient_accumulation_steps"),
                    max_length=max_length,
                    packing=False,
                    **supervised_options(work_dir, seed, settings.checkpoint_steps),
                )
            ),
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=settings.lora.peft_config(),
        )
    except ValueError as error:  # such as layers that cannot have the adapters asked for
        raise UserError(f"sft: {' '.join(str(error).split())}") from error
    history = train(trainer, work_dir, "supervised fine-tuning")
    save_policy(trainer, policy, output, work_dir=work_dir, tokenizer=tokenizer, end_ids=end_ids)
    return history
