"""Policies fine-tuned against the refined reward models of a few cells, to check what the cheap measures stand for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from shfcas.compare.cells import NONE, Cell, Label, RefineHead, ask, judge
from shfcas.compare.config import CompareConfig
from shfcas.compare.frozen import FrozenModel
from shfcas.compare.opinion import RefineOpinion
from shfcas.compare.work import POOL, RunWork
from shfcas.data.candidates import read_candidates
from shfcas.data.preferences import read_preferences, write_preferences
from shfcas.pipeline.content import Model, Source, scorer_source
from shfcas.pipeline.loop import Loop, Start
from shfcas.pipeline.run_directory import StageContext
from shfcas.pipeline.steps import ModelName
from shfcas.training.algorithms import PolicyTraining, train_policy
from shfcas.training.reward.config import LABELS
from shfcas.utils.files import read_numbers
from shfcas.utils.seeds import derive_seed

METRICS = {"policy_gold_reward": "gold_reward", "policy_win_rate": "win_rate", "policy_kl": "kl"}


def policies(loop: Loop, work: RunWork, start: Start) -> list[dict[str, Any]]:
    """Trains and evaluates a policy for each chosen strategy, and for the arm without labels, for each chosen seed.

    Returns:
        Tidy rows of `policy_gold_reward`, `policy_win_rate` and `policy_kl`, all against the policy before.
    """
    rows = []
    for cell in policy_cells(work.config):
        metrics = read_numbers(train_one(loop, work, start, cell))
        for name, key in METRICS.items():
            value = metrics[key]["mean"] if isinstance(metrics[key], dict) else metrics[key]
            rows.append({**cell._asdict(), "metric": name, "group": "", "value": value})
    return rows


def policy_cells(config: CompareConfig) -> list[Cell]:
    """Returns the cells whose policies are trained: none unless `ppo` names strategies."""
    budget = config.ppo_budget or max(config.budgets)
    return [
        Cell(strategy, 0 if strategy == NONE else budget, seed)
        for seed in range(config.ppo_seeds if config.ppo else 0)
        for strategy in (NONE, *(config.ppo or ()))
    ]


def train_one(loop: Loop, work: RunWork, start: Start, cell: Cell) -> Path:
    """Labels, refines, fine-tunes and evaluates for one cell, each a stage as in a run; returns the metrics' path."""
    folder = f"policies/{cell.strategy}/budget-{cell.budget}/seed-{cell.seed}"
    config, state, pool = work.config, work.state, work.path / POOL

    def cell_labels() -> list[Label]:
        bench = work.bench
        queue = [] if cell.strategy == NONE else ask(bench, bench.drawn(cell.seed), cell, work.selection(cell.strategy))
        return judge(bench, queue, cell.seed)

    def refine(context: StageContext) -> None:
        if isinstance(work.bench.refine, RefineHead | RefineOpinion):
            model = FrozenModel(str(state.reward_model), config.cost_model, config.backbone())
            model.save(context.output, work.bench.refine.head(cell_labels()))
        else:
            seed = derive_seed(config.seed, "training", cell.seed)
            work.train(
                read_preferences(labels),
                context.output,
                work_dir=context.work_dir,
                seed=seed,
                rows=work.bench.pool.rows,
            )

    def fine_tune(context: StageContext) -> None:
        training = PolicyTraining(
            policy=str(state.policy),
            reward_model=str(reward_model),
            settings=config.rl,
            seed=derive_seed(config.seed, "policy", cell.seed),  # the same for all strategies: paired comparisons
            cost_model=config.cost_model,
            prompts=loop.prompts,
            candidates=read_candidates(pool).rows(),
            gold=loop.gold,
            chat_template=config.chat_template,
        )
        train_policy(training, context.output, context.work_dir)

    labels = loop.run.stage(
        f"{folder}/preferences.jsonl",
        lambda context: write_preferences(context.output, work.preferences(work.bench.pool, cell_labels())),
        inputs={"pool": pool},
        settings={
            "selection": work.selection(cell.strategy),
            "budget": cell.budget,
            "pool_share": config.pool_share,
            "label_noise": config.label_noise,
            "seed": config.seed,
        },
    )
    reward_model: ModelName = state.reward_model
    if cell.strategy != NONE or state.preferences or config.reward.refine != LABELS:
        inputs: dict[str, Source] = {"labels": labels, "reward_model": scorer_source(state.reward_model)}
        inputs |= {f"preferences_{i}": path for i, path in enumerate(state.preferences)}
        settings = {"refine": config.refine, "l2": config.l2, "reward": config.reward, "seed": config.seed}
        reward_model = loop.run.stage(f"{folder}/reward_model", refine, inputs=inputs, settings=settings)
    policy = loop.run.stage(
        f"{folder}/policy",
        fine_tune,
        inputs={"policy": Model(state.policy), "reward_model": scorer_source(reward_model), "pool": pool},
        settings={"rl": config.rl, "seed": config.seed},
    )
    loop.evaluate(replace(state, policy=policy, reward_model=reward_model), folder, start)
    return loop.run.path / folder / "metrics.json"
