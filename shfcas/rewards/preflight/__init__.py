"""Preflight: what is wrong with a reward model, looked for on known pairs before anything is scored with it.

Reward models rarely fail with an error. A lost head, a template or an end token that is not the one of training, or
padding that is read as text give scores that look like scores. Each check here says pass, warn or fail in one
sentence, and what to do about it.
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
from shfcas.utils.config import option
from shfcas.utils.errors import UserError

__all__ = ["FAIL", "PASS", "WARN", "Finding", "PreflightConfig", "check_model", "preflight", "refuse_failures"]

logger = logging.getLogger(__name__)


@dataclass
class PreflightConfig:
    """Checks of the reward model before the first scoring."""

    pairs: int = option(200, "known pairs that are scored, spread evenly over those there are")
    tolerance: float = option(
        1e-3, "by how much a score may depend on what it is scored with, in standard deviations of the scores"
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
    """Checks a reward model, each member of an ensemble, or as much of a callable as can be seen from outside.

    Args:
        name: as `load_scorer` takes it.
        settings: see `PreflightConfig`.
        cost_model: lower is better.
        preferences: known pairs; without them, a few obvious ones are used, which only ever warn.
        candidates: rows with `prompt` and `completions`, whose lengths are checked.
        answer_tokens: tokens that are still to be added to each candidate, as the policy counts them.

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
        return check_callable(load_scorer(name, cost_model), spread(preferences, settings.pairs), settings)
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
    """Logs the warnings, and raises a UserError with the failures if there are any."""
    for finding in findings:
        if finding.status == WARN:
            logger.warning("preflight, %s: %s; %s", finding.check, finding.message, finding.remedy)
    failed = [f"{f.check}: {f.message}; {f.remedy}" for f in findings if f.status == FAIL]
    if failed:
        raise UserError(
            f"the reward model is not fit to score: {' | '.join(failed)} "
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
    """The checks of a model and its tokenizer; see `preflight`."""
    scorer = ModelScorer(model, tokenizer)
    lengths = [checks.pair_length(tokenizer, p) for p in preferences]
    answers = [checks.length(tokenizer, row["prompt"], text) for row in candidates for text in row["completions"]]
    short = [p for p, tokens in zip(preferences, lengths, strict=True) if tokens <= scorer.max_length]
    known = spread(short, settings.pairs)
    pairs = known or [p for p in OBVIOUS if checks.pair_length(tokenizer, p) <= scorer.max_length]
    findings = [checks.check_length(scorer.max_length, lengths, answers, answer_tokens)]
    findings.append(checks.check_template(scorer, pairs))
    if findings[-1].status == FAIL or not pairs:
        return findings  # what the model cannot see, it cannot judge
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
    """The checks of a callable, about which nothing is known but what it returns."""
    pairs = known or OBVIOUS
    few = pairs[: checks.BATCH]
    try:
        chosen, rejected = pair_rewards(scorer, pairs)
        alone = [pair_rewards(scorer, [p])[0][0] for p in few]
    except (TypeError, KeyError) as error:  # a reward may need columns of the prompts, which pairs do not have
        message = f"the function does not score pairs alone ({error})"
        return [Finding("numbers", WARN, message, "nothing about it was checked; look at its first rewards yourself")]
    numbers = checks.check_numbers([*chosen, *rejected])
    if numbers.status == FAIL:
        return [numbers]
    return [
        numbers,
        checks.batch_finding(alone, chosen[: len(few)], settings.tolerance, "a score must not depend on other answers"),
        checks.check_accuracy(np.subtract(chosen, rejected), bool(known)),
    ]


def spread(preferences: Sequence[Preference], count: int) -> list[Preference]:
    """So many of them, at equal distances, so that every part of a file is seen."""
    count = min(count, len(preferences))
    return [preferences[i * len(preferences) // count] for i in range(count)]
