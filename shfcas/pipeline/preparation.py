"""Stages before the first round: demonstrations, the SFT policy, original preferences, the proxy and its checks.

They have the form of the steps in `shfcas.pipeline.steps`.
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from shfcas.data.candidates import read_candidates, read_prompts
from shfcas.data.formats import Columns
from shfcas.data.messages import Prompt, plain_text, prompt_key
from shfcas.data.preferences import read_preferences, write_preferences
from shfcas.engines import Engine
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.content import Model, Value, column_settings, data_source, scorer_source, template_content
from shfcas.pipeline.demonstrations import BootstrapConfig, demonstrations
from shfcas.pipeline.run_directory import RunDirectory, StageContext
from shfcas.pipeline.steps import ModelName, sample, train_reward
from shfcas.rewards.preflight import PreflightConfig, preflight, refuse_failures
from shfcas.training.reward.config import RewardModelConfig
from shfcas.training.sft import SFTStageConfig, read_demonstrations, train_sft
from shfcas.utils.errors import UserError
from shfcas.utils.files import write_json, write_jsonl

logger = logging.getLogger(__name__)


def refuse_shared_prompts(
    prompts: Iterable[Prompt], eval_prompts: Sequence[dict[str, Any]], name: str = "prompts"
) -> None:
    """Checks that no prompt is both trained and evaluated on, however it is written.

    Args:
        prompts: prompts that are trained on.
        eval_prompts: rows with `prompt`.
        name: the configuration key that `prompts` come from.

    Raises:
        UserError: they share prompts.
    """
    trained_on = {prompt_key(prompt) for prompt in prompts}
    shared = [row for row in eval_prompts if prompt_key(row["prompt"]) in trained_on]
    if shared:
        first = plain_text(shared[0]["prompt"])[:60]
        raise UserError(
            f"{name} and eval_prompts share {len(shared)} prompts, first {first!r}: evaluation must be held out; "
            "remove them from one of the two"
        )


def warn_of_held_out(config: RunConfig) -> None:
    """Warns if the refinement holds out prompts that the proxy was trained on."""
    if config.feedback != "none" and config.proxy and config.proxy.held_out < config.reward.held_out:
        logger.warning("reward.held_out is larger than proxy.held_out: some of it is what the proxy was trained on")


def make_demonstrations(
    run: RunDirectory,
    output: str,
    *,
    policy: ModelName,
    bootstrap: BootstrapConfig,
    columns: Columns,
    chat_template: str | None,
    engine: Engine,
) -> Path:
    """Makes demonstrations of the best samples of the raw policy. The samples lie beside them.

    Args:
        run: the run directory.
        output: the demonstrations to write.
        policy: the raw policy.
        bootstrap: prompts, sampling parameters, and which samples become demonstrations.
        columns: names of the columns in the user's data.
        chat_template: for a policy without one.
        engine: where the answers are sampled.
    """
    samples = sample(
        run,
        str(Path(output).with_name("bootstrap.parquet")),
        policy=policy,
        prompts=read_prompts(bootstrap.prompts, columns),
        sampling=bootstrap.sampling,
        references={},
        chat_template=chat_template,
        engine=engine,
        section="bootstrap.sampling",
    )
    return run.stage(
        output,
        lambda context: write_jsonl(context.output, demonstrations(read_candidates(samples), bootstrap)),
        inputs={"candidates": samples, "demonstrator": scorer_source(bootstrap.demonstrator)},
        settings={"bootstrap.per_prompt": bootstrap.per_prompt, "bootstrap.threshold": bootstrap.threshold},
    )


def copy_preferences(run: RunDirectory, output: str, *, preferences: str, columns: Columns) -> Path:
    """Copies the original preferences, see `shfcas.data.reading.read_rows`, into the run directory."""
    return run.stage(
        output,
        lambda context: write_preferences(context.output, read_preferences(preferences, columns)),
        inputs={"preferences": data_source(preferences)},
        settings=column_settings(columns, "prompt", "chosen", "rejected"),
    )


def fine_tune_on_demonstrations(
    run: RunDirectory,
    output: str,
    *,
    policy: str,
    demonstrations: str | Path,
    columns: Columns,
    sft: SFTStageConfig,
    chat_template: str | None,
) -> Path:
    """Fine-tunes the raw policy on demonstrations.

    Args:
        run: the run directory.
        output: the folder of the new policy.
        policy: the raw policy.
        demonstrations: rows with `prompt` and `completion`, see `shfcas.data.reading.read_rows`.
        columns: names of the columns in the user's data.
        sft: settings of the training.
        chat_template: for a policy without one.
    """

    def make(context: StageContext) -> None:
        train_sft(
            policy,
            read_demonstrations(demonstrations, columns),
            settings=sft,
            output=context.output,
            work_dir=context.work_dir,
            seed=context.seed,
            chat_template=chat_template,
        )

    return run.stage(
        output,
        make,
        inputs={"policy": Model(policy), "demonstrations": data_source(demonstrations)},
        settings={
            **column_settings(columns, "prompt", "completion"),
            "sft": sft,
            "chat_template": template_content(chat_template),
            "seed": run.seed,
        },
    )


def train_proxy(
    run: RunDirectory, output: str, *, backbone: str, preferences: Path, proxy: RewardModelConfig, split_seed: int
) -> Path:
    """Trains the proxy reward model on the original preferences.

    Args:
        run: the run directory.
        output: the folder of the proxy.
        backbone: the model to start from.
        preferences: the original preferences.
        proxy: settings of the training.
        split_seed: draws the held-out prompts; the rounds share it.
    """
    return run.stage(
        output,
        lambda context: train_reward(context, backbone, [preferences], settings=proxy, split_seed=split_seed),
        inputs={"backbone": Model(backbone), "preferences": preferences},
        settings={"proxy": proxy, "seed": run.seed},
    )


def check_reward_model(
    run: RunDirectory,
    output: str,
    *,
    reward_model: ModelName,
    preferences: Path | None,
    prompts: Sequence[dict[str, Any]],
    settings: PreflightConfig,
    cost_model: bool,
    answer_tokens: int,
) -> Path:
    """Checks the reward model before anything is scored with it.

    Args:
        run: the run directory.
        output: the findings to write.
        reward_model: the proxy reward model.
        preferences: known pairs; None uses a few obvious ones.
        prompts: rows with `prompt`, whose lengths are checked.
        settings: settings of the checks.
        cost_model: lower is better.
        answer_tokens: maximum number of tokens of an answer to these prompts.

    Raises:
        UserError: the reward model is not fit to score.
    """

    def make(context: StageContext) -> None:
        findings = preflight(
            str(reward_model),
            settings,
            cost_model=cost_model,
            preferences=read_preferences(preferences) if preferences else [],
            candidates=[{**row, "completions": [""]} for row in prompts],
            answer_tokens=answer_tokens,
        )
        refuse_failures(findings)
        write_json(context.output, [vars(finding) for finding in findings])

    known = {"preferences": preferences} if preferences else {}
    return run.stage(
        output,
        make,
        inputs={"reward_model": scorer_source(reward_model), "prompts": Value(prompts), **known},
        settings={"preflight": settings, "cost_model": cost_model, "sampling.max_new_tokens": answer_tokens},
    )
