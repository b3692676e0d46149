"""Preflight: checks of a reward model on known pairs before it scores anything.

Reward models rarely fail with an error. A missing head, a different template or end token than in training, or padding
read as text give plausible but wrong scores. Each check reports pass, warn or fail with one sentence and a remedy.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shfcas.data.preferences import Preference
from shfcas.models.loading import has_trained_head, load_reward_model
from shfcas.models.resolve import is_cost_model
from shfcas.rewards.metrics import pair_rewards
from shfcas.rewards.preflight import checks
from shfcas.rewards.preflight.finding import FAIL, PASS, WARN, Finding
from shfcas.rewards.preflight.known import OBVIOUS
from shfcas.rewards.scorers import ModelScorer, ensemble_members, load_scorer, negated
from shfcas.utils.callables import is_callable_name
from shfcas.utils.config import Options, option
from shfcas.utils.errors import UserError

__all__ = ["FAIL", "PASS", "WARN", "Finding", "PreflightConfig", "check_model", "preflight", "refuse_failures"]

logger = logging.getLogger(__name__)


@dataclass
class PreflightConfig(Options):
    """Checks of the reward model before the first scoring."""

    pairs: int = option(200, "known pairs to score, spread evenly over the file", ge=0)
    tolerance: float = option(
        1e-3, "maximum change of a score by the rest of its batch, in standard deviations of the scores", ge=0
    )


def preflight(
    name: str,
    settings: PreflightConfig,
    *,
    cost_model: bool = False,
    preferences: Sequence[Preference] = (),
    candidates: Sequence[dict[str, Any]] = (),
    answer_tokens: int = 0,
) -> list[Finding]:
    """Checks a reward model, each member of an ensemble, or the outputs of a callable.

    Args:
        name: see `load_scorer`.
        settings: see `PreflightConfig`.
        cost_model: lower is better.
        preferences: known pairs; without them, a few obvious pairs are used, which only cause warnings.
        candidates: rows with `prompt` and `completions`, whose lengths are checked.
        answer_tokens: tokens still to be added to each candidate, counted by the policy's tokenizer.

    Returns:
        The findings in the order of the checks.
    """
    if members := ensemble_members(name):
        return [
            replace(finding, check=f"{Path(member).name}, {finding.check}")
            for member in members
            for finding in preflight(
                member,
                settings,
                cost_model=cost_model,
                preferences=preferences,
                candidates=candidates,
                answer_tokens=answer_tokens,
            )
        ]
    if is_callable_name(name):
        return check_callable(load_scorer(name, cost_model), evenly_spaced(preferences, settings.pairs), settings)
    model, tokenizer = load_reward_model(name)
    head = checks.check_head(has_trained_head(name))
    lower = cost_model or is_cost_model(name)
    return [
        head,
        *check_model(
            model,
            tokenizer,
            settings=settings,
            cost_model=lower,
            preferences=preferences,
            candidates=candidates,
            answer_tokens=answer_tokens,
        ),
    ]


def refuse_failures(findings: Sequence[Finding]) -> None:
    """Logs the warnings.

    Raises:
        UserError: a check failed; the message lists all failures.
    """
    for finding in findings:
        if finding.status == WARN:
            logger.warning("preflight, %s: %s; %s", finding.check, finding.message, finding.remedy)
    failed = [f"{f.check}: {f.message}; {f.remedy}" for f in findings if f.status == FAIL]
    if failed:
        raise UserError(
            f"the reward model fails its preflight checks: {' | '.join(failed)} "
            "(shfcas preflight shows all checks; the setting preflight: null skips them)"
        )


def check_model(
    model: Any,
    tokenizer: Any,
    *,
    settings: PreflightConfig,
    cost_model: bool = False,
    preferences: Sequence[Preference] = (),
    candidates: Sequence[dict[str, Any]] = (),
    answer_tokens: int = 0,
) -> list[Finding]:
    """Checks a model and its tokenizer; see `preflight`."""
    scorer = ModelScorer(model, tokenizer)
    if (broken := checks.check_frame(tokenizer)) is not None:
        return [broken]  # further checks need the tokens of answers
    lengths = [checks.pair_length(tokenizer, p) for p in preferences]
    answers = [checks.num_tokens(tokenizer, row["prompt"], text) for row in candidates for text in row["completions"]]
    short = [p for p, tokens in zip(preferences, lengths, strict=True) if tokens <= scorer.max_length]
    known = evenly_spaced(short, settings.pairs)
    pairs = known or [p for p in OBVIOUS if checks.pair_length(tokenizer, p) <= scorer.max_length]
    findings = [checks.check_length(scorer.max_length, lengths, answers, answer_tokens)]
    findings.append(checks.check_template(scorer, pairs))
    if findings[-1].status == FAIL or not pairs:
        return findings  # further checks need scores
    chosen, rejected = pair_rewards(negated(scorer) if cost_model else scorer, pairs)
    findings.append(checks.check_numbers([*chosen, *rejected]))
    if findings[-1].status == FAIL:
        return findings
    judged = checks.check_accuracy(np.subtract(chosen, rejected), bool(known))
    return [
        *findings,
        checks.check_batch(scorer, pairs, settings.tolerance),
        checks.check_end(scorer, pairs, judged),
        judged,
        checks.check_dtype(scorer, [*chosen, *rejected], pairs),
    ]


def check_callable(scorer: Any, known: Sequence[Preference], settings: PreflightConfig) -> list[Finding]:
    """Checks a callable by its return values."""
    pairs = known or OBVIOUS
    few = pairs[: checks.BATCH]
    try:
        chosen, rejected = pair_rewards(scorer, pairs)
        alone = [pair_rewards(scorer, [p])[0][0] for p in few]
    except UserError as error:
        if isinstance(error.__cause__, TypeError | KeyError):  # it may need columns, which pairs do not have
            message = f"the function needs more than prompts and answers to score pairs ({error.__cause__})"
            return [Finding("numbers", WARN, message, "it was not checked; inspect its first rewards")]
        return [Finding("numbers", FAIL, str(error), "return one number per answer")]
    numbers = checks.check_numbers([*chosen, *rejected])
    if numbers.status == FAIL:
        return [numbers]
    return [
        numbers,
        checks.batch_finding(alone, chosen[: len(few)], settings.tolerance, "a score must not depend on other answers"),
        checks.check_accuracy(np.subtract(chosen, rejected), bool(known)),
    ]


def evenly_spaced(preferences: Sequence[Preference], count: int) -> list[Preference]:
    """Returns up to `count` evenly spaced preferences, so that every part of a file is covered."""
    count = min(count, len(preferences))
    return [preferences[i * len(preferences) // count] for i in range(count)]
