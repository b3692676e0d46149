"""Step 6 with `reward.refine: clean`: the original pairs without those that the labels show to be wrong.

The labels are arbiters between reward model and policy, as in `shfcas.pipeline.arbitration`. Where they give the reward
model a trust below 0, it is wrong more often than right, and it learned that from original pairs. Those of prompts in
such groups are left out, and the reward model is trained again on the others and the labels.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shfcas.data.candidates import read_candidates
from shfcas.data.messages import answer_key, prompt_key
from shfcas.data.preferences import Preference, read_preferences, write_preferences
from shfcas.pipeline.arbitration import REPORT, Trust, trusted
from shfcas.pipeline.content import scorer_source
from shfcas.pipeline.run_directory import RunDirectory
from shfcas.pipeline.steps import ModelName
from shfcas.rewards.arbiter import ONE_GROUP
from shfcas.rewards.prompt_groups import nearest_groups
from shfcas.rewards.second_opinion import Row
from shfcas.training.reward.config import RefineConfig
from shfcas.training.reward.data import held_out_prompts, split
from shfcas.utils.errors import UserError
from shfcas.utils.files import write_json

logger = logging.getLogger(__name__)

LEFT_OUT = "left_out.jsonl"


def clean(
    run: RunDirectory,
    folder: str,
    *,
    conflicts: Path,
    labels: Path,
    original: Path,
    reward_model: ModelName,
    settings: RefineConfig,
    split_seed: int,
) -> Path:
    """Leaves out original pairs, and returns the file with those that stay.

    Args:
        run: the run directory.
        folder: the round's folder. `second_opinion/` in it lists the pairs that were left out, with the report.
        conflicts: scored answers, those that labels are about.
        labels: the labels of this round.
        original: the original pairs that are left from earlier rounds.
        reward_model: the model that gave the rewards; it embeds the prompts to group them.
        settings: settings of the refinement.
        split_seed: draws the held-out prompts, as in the training.
    """

    def judge(context: Any) -> None:
        rows, verdicts, pairs = read_candidates(conflicts).rows(), read_preferences(labels), read_preferences(original)
        used, _ = split(verdicts, held_out_prompts([*pairs, *verdicts], settings.held_out, split_seed))
        name = str(reward_model)
        found = trusted(rows, rows, used, reward_model=name, settings=settings, seed=context.seed)
        groups = group_of_pairs(rows, found, pairs, name)
        wrong = found.arbiter.reward_trust(groups) < 0
        left_out = [pair for pair, gone in zip(pairs, wrong, strict=True) if gone]
        if len(left_out) == len(pairs):
            raise UserError(
                f"reward.refine: the labels contradict the reward model about all {len(pairs)} original pairs; check "
                "the labels, or set it to arbitrate"
            )
        by_group = Counter(group for group, gone in zip(groups, wrong, strict=True) if gone)
        about = {"pairs": len(pairs), "left_out": len(left_out), "by_group": dict(sorted(by_group.items()))}
        text = f"{found.report['summary']}; {len(left_out)} of {len(pairs)} original pairs are left out"
        context.output.mkdir()
        write_json(context.output / REPORT, {**found.report, "original": about, "summary": text})
        write_preferences(context.output / LEFT_OUT, left_out)
        logger.info("%s", text)

    def keep(context: Any) -> None:
        gone = {_key(pair) for pair in read_preferences(judged / LEFT_OUT)}
        write_preferences(context.output, [pair for pair in read_preferences(original) if _key(pair) not in gone])

    own = settings.second_opinion
    used: dict[str, Any] = {
        f"reward.second_opinion.{name}": getattr(own, name) for name in ("reward_trust", "policy_trust", "group_by")
    }
    used |= {"reward.refine": settings.refine, "reward.held_out": settings.held_out, "seed": run.seed}
    inputs = {"conflicts": conflicts, "labels": labels, "original": original}
    judged = run.stage(
        f"{folder}/second_opinion",
        judge,
        inputs={**inputs, "reward_model": scorer_source(reward_model)},
        settings=used,
    )
    return run.stage(f"{folder}/original.jsonl", keep, inputs={"original": original, "second_opinion": judged})


def group_of_pairs(rows: Sequence[Row], found: Trust, pairs: Sequence[Preference], reward_model: str) -> list[str]:
    """Returns the group of each pair: that of the row with the same prompt, or else with the most similar one."""
    if found.groups is None:
        return [ONE_GROUP] * len(pairs)
    groups = {prompt_key(row["prompt"]): group for row, group in zip(rows, found.groups, strict=True)}
    others = {key: p.prompt for p in pairs if (key := prompt_key(p.prompt)) not in groups}
    if others:
        near = nearest_groups(rows, found.groups, list(others.values()), reward_model)
        groups |= dict(zip(others, near, strict=True))
    return [groups[prompt_key(p.prompt)] for p in pairs]


def _key(pair: Preference) -> tuple[str, str, str]:
    return prompt_key(pair.prompt), answer_key(pair.chosen), answer_key(pair.rejected)
