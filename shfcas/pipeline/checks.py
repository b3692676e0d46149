"""Checks of a whole run before its first stage is made, so that a mistake costs seconds and not hours.

Each check is about stages that are left to make; what is done already is not checked again.
"""

from collections.abc import Collection, Sequence
from importlib.util import find_spec
from typing import Any

from shfcas.data.candidates import read_prompts
from shfcas.data.chat import encode_prompt
from shfcas.data.messages import plain_text
from shfcas.data.preferences import read_preferences
from shfcas.models.loading import policy_tokenizer
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.manifest import DONE
from shfcas.pipeline.preparation import refuse_shared_prompts
from shfcas.pipeline.run_directory import Plan
from shfcas.rewards.scorers import check_scorer, load_scorer
from shfcas.rewards.table import score_block
from shfcas.sampling.config import SamplingConfig
from shfcas.training.sft import read_demonstrations
from shfcas.utils.callables import is_callable_name
from shfcas.utils.errors import MissingExtra, UsageError, UserError

Rows = Sequence[dict[str, Any]]
ANSWERS = ("Yes, I think so.", "No, and here is a longer answer that says why.")
GENERATORS = {"vllm": ("vllm", "vllm"), "openai": ("httpx2", "rlhf")}  # package and extra of a generator


def check_run(config: RunConfig, plan: Plan, prompts: Rows, eval_prompts: Rows) -> None:
    """Runs all checks that concern stages which are not done.

    Args:
        config: the configuration of the run.
        plan: its stages.
        prompts: rows to sample from and to train on.
        eval_prompts: rows to evaluate on.

    Raises:
        UserError: a check failed; the message names the configuration key.
    """
    left = {stage.name: stage for stage in plan.stages if stage.state != DONE}
    if not left:
        return
    check_extras(config)
    check_leakage(config, left.keys(), eval_prompts)
    if any(name.endswith("/queue.jsonl") for name in left):
        check_pairs(config)
    check_lengths(config, left.keys(), prompts, eval_prompts)
    if config.rl.algorithm == "ppo" and config.rl.ppo.cost and trains_policy(left):
        check_reward("rl.ppo.cost", config.rl.ppo.cost, prompts[0])
    if config.gold and (trains_policy(left) or any("gold" in stage.inputs for stage in left.values())):
        check_reward("gold", config.gold, prompts[0] if config.feedback == "gold" else eval_prompts[0])


def trains_policy(left: Collection[str]) -> bool:
    """Tells whether a policy of a round is left to train, given the names of the stages that are not done."""
    return any(name.endswith("/policy") and name != "round-0/policy" for name in left)


def check_extras(config: RunConfig) -> None:
    """Checks that the optional packages which the configuration needs are installed.

    Raises:
        MissingExtra: one is not.
    """
    sections = [config.sampling, config.evaluation.sampling]
    if config.bootstrap and not config.demonstrations:
        sections.append(config.bootstrap.sampling)
    needed = [GENERATORS[section.generator] for section in sections if section.generator in GENERATORS]
    if config.engine == "ray":
        needed.append(("ray", "ray"))
    if "judge" in (config.feedback, config.evaluation.judge):
        needed.append(("httpx2", "rlhf"))
    for package, extra in needed:
        if find_spec(package) is None:
            raise MissingExtra(package, extra)


def check_pairs(config: RunConfig) -> None:
    """Checks that there are two answers to compare.

    Raises:
        UsageError: there is one answer per prompt.
    """
    if config.sampling.num_completions < 2:
        raise UsageError(
            f"sampling.num_completions: expected at least 2 with feedback {config.feedback}, to compare answers to "
            f"one prompt, got {config.sampling.num_completions}; raise it, or set feedback none"
        )


def check_leakage(config: RunConfig, left: Collection[str], eval_prompts: Rows) -> None:
    """Checks that no held-out prompt is in the preferences, the demonstrations or the bootstrap prompts.

    The prompts of the rounds are checked when the loop reads them.

    Args:
        config: the configuration of the run.
        left: names of the stages that are not done.
        eval_prompts: rows to evaluate on.

    Raises:
        UserError: a prompt is both trained and evaluated on.
    """
    if config.preferences and "round-0/preferences.jsonl" in left:
        refuse_shared_prompts(
            (p.prompt for p in read_preferences(config.preferences, config.columns())), eval_prompts, "preferences"
        )
    shown = "round-0/policy" in left or (config.rl.shows_demonstrations and trains_policy(left))
    if config.demonstrations and shown:
        demonstrations = read_demonstrations(config.demonstrations, config.columns())
        refuse_shared_prompts((row["prompt"] for row in demonstrations), eval_prompts, "demonstrations")
    if config.bootstrap and "round-0/bootstrap.parquet" in left:
        rows = read_prompts(config.bootstrap.prompts, config.columns())
        refuse_shared_prompts((row["prompt"] for row in rows), eval_prompts, "bootstrap.prompts")


def check_lengths(config: RunConfig, left: Collection[str], prompts: Rows, eval_prompts: Rows) -> None:
    """Renders each prompt that is still to be sampled from or trained on, and checks that an answer fits behind it.

    Args:
        config: the configuration of the run.
        left: names of the stages that are not done.
        prompts: rows to sample from and to train on.
        eval_prompts: rows to evaluate on.

    Raises:
        UserError: the policy's chat template refuses a prompt, or a prompt is too long.
    """
    cases: list[tuple[str, Rows, str, SamplingConfig]] = []
    if any(name.endswith("/candidates.parquet") for name in left):
        cases.append(("prompts", prompts, "sampling", config.sampling))
    if config.unlabelled_prompts and any(name.endswith("/unlabelled_candidates.parquet") for name in left):
        cases.append(("unlabelled_prompts", read_prompts(config.unlabelled_prompts), "sampling", config.sampling))
    if any(name.endswith("/evaluation_candidates.parquet") for name in left):
        cases.append(("eval_prompts", eval_prompts, "evaluation.sampling", config.evaluation.sampling))
    if config.bootstrap and "round-0/bootstrap.parquet" in left:
        rows = read_prompts(config.bootstrap.prompts, config.columns())
        cases.append(("bootstrap.prompts", rows, "bootstrap.sampling", config.bootstrap.sampling))
    training = getattr(config.rl, config.rl.algorithm) if trains_policy(left) else None
    limited = hasattr(training, "max_prompt_length")
    if not (cases or limited):
        return
    tokenizer, context = policy_tokenizer(config.policy, config.chat_template)
    if limited:
        check_training_lengths(f"rl.{config.rl.algorithm}", training, prompts, tokenizer, context)
    for key, asked, section, sampling in cases:
        own = sampling.vllm.max_model_len if sampling.generator == "vllm" else None
        most = min(context, own or context)
        for row in asked:
            length = _tokens(tokenizer, key, row)
            if length > most - sampling.max_new_tokens:
                raise UserError(
                    f"{key}: prompt {row['prompt_id']!r} has {length} tokens ({plain_text(row['prompt'])[:60]!r}), and "
                    f"{section}.max_new_tokens {sampling.max_new_tokens} of a context of {most} leave "
                    f"{max(most - sampling.max_new_tokens, 0)}; shorten the prompt or lower {section}.max_new_tokens"
                )


def check_training_lengths(section: str, settings: Any, prompts: Rows, tokenizer: Any, context: int) -> None:
    """Checks that the training of the policy takes every prompt: it truncates and drops none.

    Args:
        section: the section of the algorithm, such as `rl.ppo`.
        settings: its settings, with `max_prompt_length` and `max_completion_length`.
        prompts: rows to train on.
        tokenizer: the policy's.
        context: the policy's context in tokens.

    Raises:
        UserError: prompts are too long; the message counts them and names the first.
    """
    most, space = settings.max_prompt_length, context - settings.max_completion_length
    lengths = [_tokens(tokenizer, "prompts", row) for row in prompts]
    long = [i for i, length in enumerate(lengths) if length > min(most, space)]
    if not long:
        return
    name, remedy = "max_prompt_length", f"raise {section}.max_prompt_length"
    if space < most:
        name, remedy = "context less max_completion_length", f"lower {section}.max_completion_length"
    raise UserError(
        f"{section}.max_prompt_length: {len(long):,} of {len(lengths):,} prompts are longer than {name} "
        f"{min(most, space)}, first prompt {prompts[long[0]]['prompt_id']!r} with {lengths[long[0]]} tokens, the "
        f"longest with {max(lengths)}; shorten or drop them, or {remedy}"
    )


def _tokens(tokenizer: Any, key: str, row: dict[str, Any]) -> int:
    """Number of tokens of a prompt as the policy reads it; an error names the prompt."""
    try:
        return len(encode_prompt(tokenizer, row["prompt"]))
    except UserError as error:
        raise UserError(f"{key}: prompt {row['prompt_id']!r}: {error}") from error


def check_reward(key: str, name: str, row: dict[str, Any]) -> None:
    """Checks a reward: a function is called on two answers to one prompt, a model must have a trained head.

    Args:
        key: its key in the configuration, for errors.
        name: the reward: a model, or `module:function`.
        row: a prompt with its columns.

    Raises:
        UserError: the function fails or does not return one number per answer.
    """
    if not is_callable_name(name):
        check_scorer(name)
        return
    try:
        score_block(load_scorer(name), [{**row, "completions": list(ANSWERS)}])
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
