"""Step 6, first part: the second opinion of policy and reward model, with labels as arbiters between them.

The stage has the form of the steps in `shfcas.pipeline.steps`. Its folder has `arbiter.json`, which source the
labels sided with and how far each is trusted, and `soft_labels.jsonl`, what the reward model is then trained on.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shfcas.data.candidates import read_candidates
from shfcas.data.preferences import Preference, read_preferences, write_preferences
from shfcas.pipeline.content import Source, scorer_source
from shfcas.pipeline.run_directory import RunDirectory
from shfcas.pipeline.steps import SOFT_LABELS, ModelName
from shfcas.rewards.arbiter import ONE_GROUP, Arbiter, fit_arbiter, fit_best_grouping, prior_arbiter
from shfcas.rewards.prompt_groups import groupings_of
from shfcas.rewards.second_opinion import Row, labelled_pairs, pool_of, sides, soft_labels
from shfcas.training.reward.config import ARBITRATE, CLEAN, RefineConfig
from shfcas.training.reward.data import held_out_prompts, split
from shfcas.utils.files import write_json

logger = logging.getLogger(__name__)

REPORT = "arbiter.json"


def second_opinion(
    run: RunDirectory,
    output: str,
    *,
    conflicts: Path,
    unlabelled: Path | None,
    labels: Path | None,
    preferences: Sequence[Path],
    reward_model: ModelName,
    settings: RefineConfig,
    split_seed: int,
) -> Path:
    """Judges all pairs of the answers, and returns the folder with the soft labels.

    Args:
        run: the run directory.
        output: the folder to write.
        conflicts: scored answers, those that labels are about.
        unlabelled: scored answers to further prompts, which nobody was asked about; None: there are none.
        labels: the labels of this round, which decide how far each source is trusted; None: there are none.
        preferences: earlier preferences, which decide with the labels which prompts are held out.
        reward_model: the model that gave the rewards; it embeds the prompts to group them.
        settings: settings of the refinement.
        split_seed: draws the held-out prompts, as in the training.
    """
    tables = {"conflicts": conflicts} | ({"unlabelled": unlabelled} if unlabelled else {})
    inputs: dict[str, Source] = {**tables, **{f"preferences_{i}": path for i, path in enumerate(preferences)}}
    if settings.refine == ARBITRATE:
        inputs["reward_model"] = scorer_source(reward_model)
    if labels:
        inputs["labels"] = labels

    def make(context: Any) -> None:
        asked, others = (read_candidates(table).rows() if table else [] for table in (conflicts, unlabelled))
        verdicts = read_preferences(labels) if labels else []
        earlier = [p for path in preferences for p in read_preferences(path)]
        apart = held_out_prompts([*earlier, *verdicts], settings.held_out, split_seed)
        kept, _ = split(verdicts, apart)
        opinion = judged(asked, others, kept, reward_model=str(reward_model), settings=settings, seed=context.seed)
        soft, _ = split(opinion.soft_labels, apart)
        context.output.mkdir()
        write_json(context.output / REPORT, {**opinion.report, "soft_labels": len(soft)})
        write_preferences(context.output / SOFT_LABELS, soft)
        logger.info("%s", opinion.report["summary"])

    names = ("reward_trust", "policy_trust", "group_by", "pairs_per_prompt")
    used = {f"reward.second_opinion.{name}": getattr(settings.second_opinion, name) for name in names}
    used |= {"reward.refine": settings.refine, "reward.held_out": settings.held_out, "seed": run.seed}
    return run.stage(output, make, inputs=inputs, settings=used)


@dataclass(frozen=True)
class Opinion:
    """Soft labels, and the report about the trust that they rest on."""

    soft_labels: list[Preference]
    report: dict[str, Any]


def judged(
    asked: Sequence[Row],
    others: Sequence[Row],
    labels: Sequence[Preference],
    *,
    reward_model: str,
    settings: RefineConfig,
    seed: int,
) -> Opinion:
    """Fits the arbiter to the labels, if they are to arbitrate, and judges all pairs of the rows.

    Args:
        asked: the scored rows that labels are about.
        others: further scored rows.
        labels: verdicts about the first rows.
        reward_model: the model that embeds the prompts.
        settings: settings of the refinement.
        seed: seed of clusters and of the draw of pairs.
    """
    rows = [*asked, *others]
    found = trusted(asked, rows, labels, reward_model=reward_model, settings=settings, seed=seed)
    pool, per_prompt = pool_of(rows, found.groups), settings.second_opinion.pairs_per_prompt
    return Opinion(soft_labels(rows, pool, found.arbiter, per_prompt=per_prompt, seed=seed), found.report)


@dataclass(frozen=True)
class Trust:
    """How far reward model and policy are trusted.

    Attributes:
        arbiter: the posterior.
        groups: the group of each row; None: there is one group.
        report: about both, for people.
    """

    arbiter: Arbiter
    groups: list[str] | None
    report: dict[str, Any]


def trusted(
    asked: Sequence[Row],
    rows: Sequence[Row],
    labels: Sequence[Preference],
    *,
    reward_model: str,
    settings: RefineConfig,
    seed: int,
) -> Trust:
    """Fits the arbiter to the labels, unless they are only further pairs.

    Args:
        asked: the scored rows that labels are about, the first ones of all rows.
        rows: all rows to group.
        labels: verdicts about rows that were asked about.
        reward_model: the model that embeds the prompts.
        settings: settings of the refinement.
        seed: seed of clusters.
    """
    own = settings.second_opinion
    trust = (own.reward_trust, own.policy_trust)
    groups: list[str] | None = None
    arbiter, name, evidence = prior_arbiter(trust), ONE_GROUP, dict[str, float]()
    pairs, used = labelled_pairs(asked, labels)
    if settings.refine in (ARBITRATE, CLEAN) and used:
        groupings = groupings_of(rows, reward_model, own.group_by, seed)
        place = {row["prompt_id"]: number for number, row in enumerate(asked)}
        of_pairs = {key: [of_rows[place[p.prompt_id]] for p in used] for key, of_rows in groupings.items()}
        name, arbiter, evidence = fit_best_grouping(pairs, np.ones(len(pairs)), of_pairs, trust=trust)
        if own.group_by is not None:  # a column that was named is used
            name = own.group_by
            arbiter = fit_arbiter(pairs.regrouped(of_pairs[name]), np.ones(len(pairs)), trust=trust)
        groups = list(groupings[name]) if name != ONE_GROUP else None
    by_group = {}
    if groups is not None:
        grouped, _ = labelled_pairs(asked, used, groups)
        by_group = {g: sides(pairs[grouped.group == g]) for g in sorted(set(grouped.group.tolist()))}
    report = {
        "refine": settings.refine,
        "prior_trust": {"reward_model": trust[0], "policy": trust[1]},
        "labels": len(used),
        "labels_not_used": len(labels) - len(used),
        "sided_with": {"all": sides(pairs), **by_group},
        "grouping": name or None,
        "evidence": evidence,
        "trust": arbiter.trust(),
    }
    return Trust(arbiter, groups, {**report, "summary": summary(report)})


def summary(report: dict[str, Any]) -> str:
    """Says in one line which source the labels sided with, and how far the soft labels trust each."""
    reward, policy = (row["trust"] for row in report["trust"][:2])
    trusted = f"trust per unit of z-score: reward model {reward:.2f}, policy {policy:.2f}"
    if not report["labels"] or report["refine"] not in (ARBITRATE, CLEAN):
        return f"second opinion without labels; {trusted}"
    found = report["sided_with"]["all"]
    return (
        f"{report['labels']} labels: {found['reward_model']} side with the reward model alone, {found['policy']} with "
        f"the policy alone, {found['both']} with both, {found['neither']} with neither; {trusted}"
    )
