"""Policies that follow the refined reward models of a few cells: what the cheap measures stand in for."""

from pathlib import Path
from typing import Any

from shfcas.compare.cells import NONE, Cell, Label, RefineHead, ask, judge
from shfcas.compare.frozen import FrozenModel
from shfcas.compare.work import POOL, RunWork
from shfcas.data.candidates import read_candidates
from shfcas.data.preferences import read_preferences, write_preferences
from shfcas.pipeline.loop import Loop, Start
from shfcas.pipeline.run_directory import StageContext
from shfcas.training.algorithms import PolicyTraining, train_policy
from shfcas.utils.files import read_json
from shfcas.utils.seeds import derive_seed

METRICS = {"policy_gold_reward": "gold_reward", "policy_win_rate": "win_rate", "policy_kl": "kl"}


def policies(loop: Loop, work: RunWork, start: Start) -> list[dict[str, Any]]:
    """Trains and evaluates a policy for each chosen strategy, and for the arm without labels, for each chosen seed.

    Returns:
        Tidy rows of `policy_gold_reward`, `policy_win_rate` and `policy_kl`, all against the policy before.
    """
    config, found = work.config, []
    budget = config.ppo_budget or max(config.budgets)
    for seed in range(config.ppo_seeds):
        for strategy in (NONE, *(config.ppo or ())):
            cell = Cell(strategy, 0 if strategy == NONE else budget, seed)
            metrics = read_json(train_one(loop, work, start, cell))
            for name, key in METRICS.items():
                value = metrics[key]["mean"] if isinstance(metrics[key], dict) else metrics[key]
                found.append({**cell._asdict(), "metric": name, "group": "", "value": value})
    return found


def train_one(loop: Loop, work: RunWork, start: Start, cell: Cell) -> Path:
    """One policy; returns the path of its metrics. Every stage is done once, as in a run."""
    name = f"policies/{cell.strategy}/budget-{cell.budget}/seed-{cell.seed}"
    config, bench, pool = work.config, work.bench, work.path / POOL
    training = derive_seed(config.seed, "training", cell.seed)

    def answers() -> list[Label]:
        drawn = bench.drawn(cell.seed)
        queue = [] if cell.strategy == NONE else ask(bench, drawn, cell, work.selection(cell.strategy))
        return judge(bench, queue, cell.seed)

    labels = loop.run.stage(
        f"{name}/preferences.jsonl",
        lambda c: write_preferences(c.output, work.preferences(bench.pool, answers())),
        {"pool": pool},
    )

    def refine(context: StageContext) -> None:
        if isinstance(bench.refine, RefineHead):
            model = FrozenModel(str(work.state.reward_model), config.cost_model, config.backbone())
            model.save(context.output, bench.refine.head(answers()))
        else:
            work.train(read_preferences(labels), context.output, context.work_dir, training)

    inputs = {"labels": labels, "reward_model": work.state.reward_model}
    reward_model: str | Path = work.state.reward_model
    if cell.strategy != NONE or work.state.preferences:
        reward_model = loop.run.stage(f"{name}/reward_model", refine, inputs)

    def improve(context: StageContext) -> None:
        training = PolicyTraining(
            policy=str(work.state.policy),
            reward_model=str(reward_model),
            settings=config.rl,
            seed=derive_seed(config.seed, "policy", cell.seed),  # shared by all strategies, so that chance is the same
            cost_model=config.cost_model,
            prompts=loop.prompts,
            candidates=read_candidates(pool).rows(),
            gold=loop.gold,
            chat_template=config.chat_template,
        )
        train_policy(training, context.output, context.work_dir)

    inputs = {"policy": work.state.policy, "reward_model": reward_model, "pool": pool}
    policy = loop.run.stage(f"{name}/policy", improve, inputs)
    state = type(work.state)(policy, reward_model, (*work.state.preferences, labels))
    loop.evaluate(state, name, start)
    return loop.run.path / name / "metrics.json"
