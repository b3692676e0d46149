"""`shfcas demo`: one biased proxy, what finds its blind topics, what labels are worth, and three policies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from shfcas.conflicts.contrasts import ContrastColumns
from shfcas.data.candidates import CandidateTable, read_candidates
from shfcas.demo.conclusion import conclude
from shfcas.demo.figure import labels_figure
from shfcas.demo.labels import Pool, accuracy_against_labels
from shfcas.demo.scores import WORDINGS, what_scores_know
from shfcas.demo.sentiment import BLIND_TOPICS
from shfcas.evaluation.metrics import ranking_accuracy
from shfcas.evaluation.statistics import mean_with_interval
from shfcas.feedback import read_queue
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.content import Function, Model, Value
from shfcas.pipeline.loop import Loop, Start
from shfcas.pipeline.run import begin, refuse
from shfcas.pipeline.run_directory import Plan, RunDirectory
from shfcas.rewards.table import answer_rewards, score_rows
from shfcas.training.reward.config import ARBITRATE, LABELS, SECOND_OPINION
from shfcas.utils.config import Options, build, option, read_yaml, to_dict, with_default
from shfcas.utils.files import read_numbers, write_json, write_text

SCORES, ADDED = "scores.json", "labels.json"


@dataclass(frozen=True)
class Arm:
    """One way to go on from the biased proxy.

    Attributes:
        name: the arm's name in tables.
        refine: how the reward model is refined, see `RefineConfig.refine`.
        strategy: which comparisons are labelled; None asks for no label.
        policy: whether a policy is trained on the reward model.
    """

    name: str
    refine: str
    strategy: str | None = None
    policy: bool = True


ARMS = {
    "biased": Arm("biased proxy", LABELS),
    "second_opinion": Arm("second opinion, no labels", SECOND_OPINION),
    "random": Arm("random labels as arbiters", ARBITRATE, "random", policy=False),
    "shf_cas": Arm("SHF-CAS labels as arbiters", ARBITRATE, "shf_cas"),
}


@dataclass
class DemoConfig(Options):
    """Settings of the demo; shfcas/demo/demo.yaml has all others."""

    output: str = with_default(RunConfig, "output", "runs/demo")
    prompts: int = option(64, "prompts to sample, select and train on (at most 96)", ge=16, le=96, common=True)
    budget: int = option(24, "label budget of each arm that asks for labels, in comparisons", ge=1, common=True)
    feedback: str = option(
        "gold",
        "who labels: the gold reward, or you, on a page, for the arm SHF-CAS alone",
        ("gold", "human"),
        common=True,
    )
    human: HumanConfig = with_default(RunConfig, "human", HumanConfig)
    finish_with_what_we_have: bool = with_default(RunConfig, "finish_with_what_we_have", False)
    seed: int = with_default(RunConfig, "seed", 0)


def run_config(config: DemoConfig) -> RunConfig:
    """Returns the configuration of the demo's loop."""
    with resources.as_file(resources.files(__package__) / "demo.yaml") as path:
        values = read_yaml(path)
    values.update(output=config.output, max_prompts=config.prompts, seed=config.seed)
    values.update(feedback=config.feedback, human=to_dict(config.human))
    values["finish_with_what_we_have"] = config.finish_with_what_we_have
    values["selection"]["budget"] = config.budget
    return build(RunConfig, values)


def arms(settings: RunConfig) -> dict[str, Arm]:
    """Returns the arms to run. People label for SHF-CAS alone: a random baseline would double their work."""
    return {name: arm for name, arm in ARMS.items() if arm.strategy != "random" or settings.feedback == "gold"}


def run_arms(loop: Loop) -> tuple[Start, Path]:
    """Makes or plans the stages of all arms; returns the baseline and the scored answers that the arms share."""
    settings, start = loop.config, loop.start()
    conflicts = loop.score(start.state, loop.sample(start.state, "round-1"), "round-1")
    what_scores_tell(loop, conflicts)
    what_labels_add(loop, conflicts)
    for name, arm in arms(settings).items():
        _run_arm(loop, name, arm=arm, start=start, conflicts=conflicts)
    return start, conflicts


def run_demo(config: DemoConfig, *, approve: Callable[[Plan], bool] = refuse) -> dict[str, Any]:
    """Runs or resumes the arms; writes results.json and labels.svg, and returns the results.

    Args:
        config: the settings.
        approve: asked whether finished stages may be made again because something that they depend on changed. By
            default they may not.

    Raises:
        UserError, UsageError: see `shfcas.pipeline.run.begin`.
    """
    settings = run_config(config)
    settings.check_inputs()
    with RunDirectory(config.output, to_dict(settings), config.seed) as run:
        loop = Loop(run, settings)
        begin(loop, lambda: run_arms(loop), approve)
        start, conflicts = run_arms(loop)
        asked = {name: blind_share(run.path / name, conflicts) for name, a in arms(settings).items() if a.strategy}
        results: dict[str, Any] = {
            "policies": policies(run.path, arms(settings)),
            "reward_models": reward_models(loop, run.path, arms=arms(settings), start=start),
            "scores": read_numbers(run.path / SCORES),
            "labels": read_numbers(run.path / ADDED),
            "asked": asked,
            "seconds": round(sum(stage.seconds for stage in run.manifest.stages.values())),
        }
        results["conclusion"] = conclude(results)
        write_json(run.path / "results.json", results)
        write_text(run.path / "labels.svg", labels_figure(results["labels"]))
    return results


def _run_arm(loop: Loop, name: str, *, arm: Arm, start: Start, conflicts: Path) -> None:
    """Runs one arm; an arm without a policy ends with its reward model."""
    settings = loop.config
    own = replace(settings, reward=replace(settings.reward, refine=arm.refine))
    loop = Loop(loop.run, own, loop.engine)
    selection = replace(settings.selection, strategy=arm.strategy) if arm.strategy else None
    if arm.policy:
        loop.round(start.state, 1, start=start, selection=selection, arm=name, conflicts=conflicts)
        return
    folder, labels = f"{name}/round-1", None
    if selection:
        labels = loop.label(loop.select(conflicts, folder, selection), conflicts, folder, 1)
    loop.refine(start.state, conflicts, labels, folder)


def what_scores_tell(loop: Loop, conflicts: Path) -> None:
    """Measures what each policy score knows, and whether its conflicts find the blind topics."""
    config = loop.config

    def make(context: Any) -> None:
        table = read_candidates(conflicts)
        other = ContrastColumns(config.policy, [WORDINGS["mood"]])
        gold = score_rows(loop.gold, table.rows())
        write_json(context.output, what_scores_know(table, gold, other, BLIND_TOPICS))

    loop.run.stage(
        SCORES,
        make,
        inputs={"conflicts": conflicts, "gold": Function(str(config.gold)), "policy": Model(config.policy)},
        settings={"wording": WORDINGS["mood"].texts()},
    )


def what_labels_add(loop: Loop, conflicts: Path) -> None:
    """Measures accuracy against labels, with heads on frozen features."""
    config = loop.config

    def make(context: Any) -> None:
        table = read_candidates(conflicts)
        pool = Pool(table, score_rows(loop.gold, table.rows()), config.reward_model)
        write_json(context.output, accuracy_against_labels(pool, BLIND_TOPICS, config.selection, context.seed))

    loop.run.stage(
        ADDED,
        make,
        inputs={
            "conflicts": conflicts,
            "gold": Function(str(config.gold)),
            "encoder": Model(config.reward_model),
            "blind": Value(BLIND_TOPICS),
        },
        settings={"selection": config.selection, "seed": config.seed},
    )


def policies(path: Path, arms: dict[str, Arm]) -> list[dict[str, Any]]:
    """Returns one row per policy: the base, and each arm's, with its paired difference to the base and to the first."""
    files = {"base policy": path / "round-0"}
    files.update({arm.name: path / name / "round-1" for name, arm in arms.items() if arm.policy})
    rows = []
    gold = {label: _gold(folder) for label, folder in files.items()}
    base, biased = (gold[label] for label in ("base policy", ARMS["biased"].name))
    for label, folder in files.items():
        row = {"policy": label, **read_numbers(folder / "metrics.json")}
        for name, before in (("difference", base), ("difference_to_biased", biased)):
            row[name] = mean_with_interval([gold[label][prompt] - value for prompt, value in before.items()])
        rows.append(row)
    return rows


def _gold(folder: Path) -> dict[str, float]:
    """Mean gold reward of each held-out prompt."""
    table = read_candidates(folder / "evaluation.parquet")
    return {p: float(np.mean(g)) for p, g in zip(table.column("prompt_id"), table.column("gold"), strict=True)}


def reward_models(loop: Loop, path: Path, *, arms: dict[str, Arm], start: Start) -> list[dict[str, Any]]:
    """Measures each arm's reward model on the held-out answers of all policies: pair accuracy, overall and by topic."""
    folders = [path / "round-0", *(path / name / "round-1" for name, arm in arms.items() if arm.policy)]
    tables = [read_candidates(folder / "evaluation.parquet") for folder in folders]
    rows = []
    for name, arm in arms.items():
        folder = path / name / "round-1" / "reward_model"
        model = folder if folder.exists() else start.state.reward_model
        each = np.array(_accuracies(loop, str(model), tables))
        blind = np.isin(tables[0].column("topic"), BLIND_TOPICS)
        found = {"all": each, "sound": each[~blind], "blind": each[blind]}
        rows.append({"arm": arm.name, **{k: mean_with_interval(v[~np.isnan(v)].tolist()) for k, v in found.items()}})
    return rows


def _accuracies(loop: Loop, reward_model: str, tables: Sequence[CandidateTable]) -> list[float]:
    """Pair accuracy of each prompt, over its answers in all tables; NaN where gold is constant."""
    rewards = [answer_rewards(loop.engine, reward_model, table.rows()) for table in tables]
    gold = [table.column("gold") for table in tables]
    by_prompt = zip(*rewards, strict=True), zip(*gold, strict=True)
    return [ranking_accuracy([*chain(*r)], [*chain(*g)]) for r, g in zip(*by_prompt, strict=True)]


def blind_share(folder: Path, conflicts: Path) -> dict[str, Any]:
    """Counts an arm's comparisons, and those about blind topics."""
    table = read_candidates(conflicts)
    topics = dict(zip(table.column("prompt_id"), table.column("topic"), strict=True))
    queue = read_queue(folder / "round-1" / "queue.jsonl")
    blind = sum(topics[c.prompt_id] in BLIND_TOPICS for c in queue)
    return {"comparisons": len(queue), "blind": blind, "share": blind / len(queue)}
