"""Steps 1 to 7 of the method, each a stage of a run directory.

A step takes what it reads (paths, prompts, names of models) and the part of the configuration that it uses. It writes
`output`, a path inside the run directory `run`, and returns the whole path. What it reads is recorded in the manifest.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shfcas.data.candidates import CandidateTable, read_candidates, write_candidates
from shfcas.data.formats import Columns
from shfcas.data.preferences import read_preferences, write_preferences
from shfcas.engines import Engine
from shfcas.feedback import FeedbackSource, read_queue
from shfcas.feedback.gold import GoldFeedback
from shfcas.feedback.judge.source import JudgeFeedback
from shfcas.models.resolve import provenance
from shfcas.pipeline.content import Model, Source, Value, column_settings, data_source, scorer_source, template_content
from shfcas.pipeline.policy_score import PolicyScore
from shfcas.pipeline.run_directory import RunDirectory, StageContext, flat_settings
from shfcas.rewards.scorers import RewardScorer
from shfcas.rewards.table import add_answer_rewards
from shfcas.sampling.config import SamplingConfig
from shfcas.sampling.table import sample_policy
from shfcas.selection import SelectionConfig
from shfcas.selection.sharded import select_table
from shfcas.training.algorithms import PolicyTraining, RLConfig, train_policy
from shfcas.training.reward.config import RefineConfig, RewardModelConfig
from shfcas.training.reward.refine import train_on_groups
from shfcas.training.sft import read_demonstrations
from shfcas.utils.config import lasting
from shfcas.utils.files import write_json, write_jsonl

logger = logging.getLogger(__name__)

SOFT_LABELS = "soft_labels.jsonl"
OPINION = ("reward.refine", "reward.second_opinion.")  # keys that decide the soft labels, not the training on them
ModelName = str | Path  # the name of a model, or the folder of one that an earlier stage made


def sample(
    run: RunDirectory,
    output: str,
    *,
    policy: ModelName,
    prompts: Sequence[dict[str, Any]],
    sampling: SamplingConfig,
    references: Mapping[str, ModelName],
    chat_template: str | None,
    engine: Engine,
    seed: int | None = None,
    section: str = "sampling",
) -> Path:
    """Step 1: samples answers with their log-probabilities.

    Args:
        run: the run directory.
        output: the candidate table to write.
        policy: the policy that answers.
        prompts: rows with `prompt_id` and `prompt`.
        sampling: sampling parameters.
        references: models by the name of a column, which holds the log-probabilities of the answers under that model.
        chat_template: for a policy without one.
        engine: where the answers are sampled.
        seed: root of the random stream of each answer; None is the stage's own seed.
        section: where `sampling` is in the configuration.
    """

    def make(context: StageContext) -> None:
        table = sample_policy(
            policy,
            prompts,
            config=sampling,
            seed=context.seed if seed is None else seed,
            work_dir=context.work_dir,
            references=references,
            chat_template=chat_template,
            engine=engine,
        )
        write_candidates(context.output, table)

    return run.stage(
        output,
        make,
        inputs={
            "policy": Model(policy),
            "prompts": Value(prompts),
            **{column: Model(model) for column, model in references.items()},
        },
        settings={section: sampling, "chat_template": template_content(chat_template), "seed": run.seed},
    )


def score(
    run: RunDirectory,
    output: str,
    *,
    candidates: Path,
    reward_model: ModelName,
    cost_model: bool,
    too_long: str,
    policy_score: PolicyScore,
    engine: Engine,
) -> Path:
    """Steps 2 and 3: scores the answers with the reward model and adds the conflict columns.

    Args:
        run: the run directory.
        output: the table to write.
        candidates: a candidate table.
        reward_model: the proxy reward model.
        cost_model: lower is better.
        too_long: what happens to an answer beyond the reward model's limit, see `shfcas.rewards.scorers.TOO_LONG`.
        policy_score: the policy's score that rewards are compared with.
        engine: where the answers are scored.
    """

    def make(context: StageContext) -> None:
        rewarded = with_rewards(
            read_candidates(candidates), reward_model, cost_model=cost_model, too_long=too_long, engine=engine
        )
        write_candidates(context.output, policy_score.add_conflicts(rewarded, engine))

    return run.stage(
        output,
        make,
        inputs={"candidates": candidates, "reward_model": scorer_source(reward_model), **policy_score.inputs()},
        settings={**policy_score.settings(), "cost_model": cost_model, "too_long": too_long},
    )


def with_rewards(
    candidates: CandidateTable, reward_model: ModelName, *, cost_model: bool, too_long: str, engine: Engine
) -> CandidateTable:
    """Adds rewards to a table, and records which model gave them."""
    rewarded = add_answer_rewards(engine, str(reward_model), candidates, cost_model, too_long)
    return rewarded.with_metadata(reward_model=str(reward_model), **provenance(reward_model=str(reward_model)))


def select(run: RunDirectory, output: str, *, conflicts: Path, selection: SelectionConfig, engine: Engine) -> Path:
    """Step 4: selects the comparisons to label, within the budget.

    Args:
        run: the run directory.
        output: the queue to write.
        conflicts: a scored candidate table.
        selection: strategy, budget and thresholds.
        engine: where the table is read.
    """

    def make(context: StageContext) -> None:
        chosen = select_table([str(conflicts)], selection, seed=context.seed, engine=engine)
        if chosen.report["shortfall"]:
            logger.warning("%s", chosen.report["shortfall"])
        write_jsonl(context.output, [comparison.to_row() for comparison in chosen.comparisons])

    return run.stage(output, make, inputs={"conflicts": conflicts}, settings={"selection": selection, "seed": run.seed})


def label(
    run: RunDirectory,
    output: str,
    *,
    queue: Path,
    conflicts: Path,
    number: int,
    source: Callable[[int], FeedbackSource],
    reads: Mapping[str, Source],
    settings: Mapping[str, Any],
) -> Path:
    """Step 5: labels the selected comparisons. The report of a language model is written beside the labels.

    Args:
        run: the run directory.
        output: the preferences to write.
        queue: the selected comparisons.
        conflicts: the table that they were selected from.
        number: the round, from 1.
        source: makes the source of feedback from the stage's seed.
        reads: what the source itself reads, such as the gold reward or a judge's guidelines.
        settings: the part of the configuration that the source uses.
    """

    def make(context: StageContext) -> None:
        feedback, comparisons = source(context.seed), read_queue(queue)
        preferences = feedback(comparisons, read_candidates(conflicts), number)
        undecided = len(comparisons) - len(preferences)
        if undecided and 2 * undecided >= len(comparisons):
            logger.warning("%s", undecided_text(feedback, undecided, len(comparisons)))
        write_preferences(context.output, preferences)
        if isinstance(feedback, JudgeFeedback):
            write_json((run.path / output).with_name("judge.json"), feedback.report)

    return run.stage(output, make, inputs={"queue": queue, "conflicts": conflicts, **reads}, settings=settings)


def undecided_text(feedback: FeedbackSource, undecided: int, asked: int) -> str:
    """Explains on one line why comparisons gave no preference, with the remedy that fits the source."""
    count = f"{undecided:,} of {asked:,}"
    if isinstance(feedback, GoldFeedback):
        return (
            f"{count} answers were ties: gold gave both answers the same reward; use a gold reward that tells answers "
            "apart, or sample answers that differ more (sampling.temperature)"
        )
    if isinstance(feedback, JudgeFeedback):
        report = feedback.report
        return (
            f"{count} comparisons have no preferred answer: {report['ties']} ties, {report['order_disagreements']} "
            "depend on the order, "
            f"{report['malformed'] + report['failed']} without a verdict; sharpen judge.criterion, or "
            "name a stronger judge.model"
        )
    return (
        f"{count} comparisons have no preferred answer: tied, both bad, flagged or not answered; let annotators answer "
        "the rest, or sample answers that differ more (sampling.temperature)"
    )


def refine(
    run: RunDirectory,
    output: str,
    *,
    reward_model: ModelName,
    labels: Path | None,
    opinion: Path | None,
    preferences: Sequence[Path],
    settings: RefineConfig,
    split_seed: int,
) -> Path:
    """Step 6: trains the reward model on soft labels and earlier preferences, merged with the new labels.

    Args:
        run: the run directory.
        output: the folder of the refined model.
        reward_model: the model to start from.
        labels: the preferences of this round; they overrule all others. None: there are none.
        opinion: the folder of the soft labels that `shfcas.pipeline.arbitration` made; None: not used.
        preferences: earlier preferences, the original ones first.
        settings: settings of the training.
        split_seed: draws the held-out prompts; all rounds share it.
    """
    earlier = {f"preferences_{i}": path for i, path in enumerate(preferences)}
    read = {"second_opinion": opinion, **earlier, "labels": labels}
    groups = {name: path for name, path in read.items() if path is not None}
    files = [path / SOFT_LABELS if path == opinion else path for path in groups.values()]
    used = flat_settings({"reward": settings, "seed": run.seed})
    return run.stage(
        output,
        lambda context: train_reward(context, reward_model, files, settings=settings, split_seed=split_seed),
        inputs={"reward_model": scorer_source(reward_model), **groups},
        settings={key: value for key, value in used.items() if not key.startswith(OPINION)},
    )


def train_reward(
    context: StageContext, start: ModelName, groups: Sequence[Path], *, settings: RewardModelConfig, split_seed: int
) -> None:
    """Trains a reward model on preference files, the most trusted last, and writes its report beside it."""
    from shfcas.report.training import write_training_report

    result = train_on_groups(
        str(start),
        [read_preferences(path) for path in groups],
        settings=settings,
        output=context.output,
        work_dir=context.work_dir,
        seed=context.seed,
        split_seed=split_seed,
    )
    write_training_report(context.output, result)


def fine_tune(
    run: RunDirectory,
    output: str,
    *,
    policy: ModelName,
    reward_model: ModelName,
    candidates: Path,
    prompts: Sequence[dict[str, Any]],
    rl: RLConfig,
    gold: Callable[[], RewardScorer] | None,
    cost_model: bool,
    too_long: str,
    chat_template: str | None,
    reference: ModelName | None = None,
    demonstrations: str | Path | None = None,
    columns: Columns | None = None,
    preferences: Sequence[Path] = (),
) -> Path:
    """Step 7: fine-tunes the policy against the reward model.

    Args:
        run: the run directory.
        output: the folder of the new policy.
        policy: the policy to start from.
        reward_model: the refined reward model.
        candidates: answers to the prompts, by which rewards are made comparable across prompts.
        prompts: rows with `prompt_id` and `prompt`.
        rl: the algorithm and its settings.
        gold: loads the gold reward, which is measured and not trained on; None measures none.
        cost_model: lower is better.
        too_long: what happens to an answer beyond the reward model's limit.
        chat_template: for a policy without one.
        reference: the model that the KL refers to; None is the policy to start from.
        demonstrations: prompts with completions that are learned beside the reward, see `ppo.ptx_coef`.
        columns: names of their columns in the user's data.
        preferences: files of pairs that DPO learns from.
    """

    def make(context: StageContext) -> None:
        training = PolicyTraining(
            policy=str(policy),
            reward_model=str(reward_model),
            settings=rl,
            seed=context.seed,
            cost_model=cost_model,
            too_long=too_long,
            prompts=prompts,
            candidates=read_candidates(candidates).rows(),
            gold=gold() if gold else None,
            chat_template=chat_template,
            reference=None if reference is None else str(reference),
            demonstrations=[] if demonstrations is None else read_demonstrations(demonstrations, columns),
            preferences=[pair for path in preferences for pair in read_preferences(path)],
        )
        train_policy(training, context.output, context.work_dir)

    settings = lasting(getattr(rl, rl.algorithm))
    value_model, cost = (settings.pop(name, None) for name in ("value_model", "cost"))  # their content is an input
    return run.stage(
        output,
        make,
        inputs={
            "policy": Model(policy),
            "reward_model": scorer_source(reward_model),
            "candidates": candidates,
            "prompts": Value(prompts),
            **({"value_model": Model(value_model)} if value_model else {}),
            **{f"preferences_{i}": path for i, path in enumerate(preferences)},
            **({"cost": scorer_source(cost)} if cost else {}),
            **({"kl_reference": Model(reference)} if reference is not None else {}),
            **({"demonstrations": data_source(demonstrations)} if demonstrations is not None else {}),
        },
        settings={
            "rl.algorithm": rl.algorithm,
            "rl.reward_shaping": rl.reward_shaping,
            f"rl.{rl.algorithm}": settings,
            **({} if demonstrations is None else column_settings(columns or {}, "prompt", "completion")),
            "cost_model": cost_model,
            "too_long": too_long,
            "chat_template": template_content(chat_template),
            "seed": run.seed,
        },
    )
