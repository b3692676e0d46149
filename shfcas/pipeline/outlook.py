"""Outlook of a run: how much the stages that are left will sample, ask and write, before any of them is made."""

import shutil
from pathlib import Path
from typing import Any

from shfcas.data.candidates import read_prompts
from shfcas.models.resolve import WEIGHTS, adapter_base, resolve
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.manifest import DONE
from shfcas.pipeline.run_directory import Plan
from shfcas.rewards.scorers import ensemble_members
from shfcas.utils.callables import is_callable_name

ANSWER_BYTES = 2000  # of a table, per answer: text, token ids and numbers
CHECKPOINT = 6  # two checkpoints of a model in training, each with two moments per weight


def outlook(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """Counts what the stages that are not done will take.

    Args:
        config: the configuration of the run.
        plan: its stages.

    Returns:
        `models`: role to `name` and `bytes` on disk. `prompts` and `eval_prompts`: numbers. `comparisons`: the most
        that will be asked for. `completions`: answers to sample into tables. `rollouts`: answers to sample in training.
        `disk`: `needed` and `free` in bytes; the need is a rough estimate.
    """
    left = [stage.name for stage in plan.stages if stage.state != DONE]
    prompts = len(read_prompts(config.prompts, config.columns())[: config.max_prompts])
    eval_prompts = len(read_prompts(config.eval_prompts, config.columns()))
    models = {
        role: {"name": name, "bytes": model_bytes(name)}
        for role, name in _models(config).items()
        if not is_callable_name(name)
    }
    completions = _completions(config, left, prompts, eval_prompts)
    comparisons = sum(name.endswith("/queue.jsonl") for name in left) * config.selection.budget
    disk = {"needed": _needed(config, left, models, completions), "free": free_bytes(Path(config.output))}
    return {
        "models": models,
        "prompts": prompts,
        "eval_prompts": eval_prompts,
        "comparisons": comparisons,
        "completions": completions,
        "rollouts": _rollouts(config, left),
        "disk": disk,
    }


def model_bytes(name: str) -> int:
    """Size of a model's weights on disk in bytes, of its base too where it is an adapter, and of all of an ensemble."""
    if members := ensemble_members(name):
        return sum(map(model_bytes, members))
    folder = Path(resolve(name))
    base = adapter_base(str(folder))
    own = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in WEIGHTS)
    return own + (model_bytes(base) if base is not None else 0)


def free_bytes(path: Path) -> int:
    """Free space in bytes on the disk that a path, which need not exist, is on."""
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def describe(found: dict[str, Any]) -> list[str]:
    """Formats an outlook, one fact per line, with a warning if the disk is too small."""
    rows = [(role, f"{model['name']}  {size(model['bytes'])}") for role, model in found["models"].items()]
    rows += [
        ("prompts", f"{found['prompts']:,} and {found['eval_prompts']:,} held out"),
        ("comparisons", f"at most {found['comparisons']:,} to label"),
        ("completions", f"{found['completions']:,} to sample, and {found['rollouts']:,} in training"),
        ("disk", f"about {size(found['disk']['needed'])} needed, {size(found['disk']['free'])} free"),
    ]
    lines = [f"{key + ':':<14}{value}" for key, value in rows]
    if found["disk"]["needed"] > found["disk"]["free"]:
        lines.append("warning: the disk may be too small; free some space, or name another folder with --output")
    return lines


def size(count: int) -> str:
    """Formats a number of bytes in decimal units.

    >>> size(999), size(1_500_000), size(2_000_000_000)
    ('999 B', '1.5 MB', '2.0 GB')
    """
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _models(config: RunConfig) -> dict[str, str]:
    roles = {"policy": config.policy, "reward_model": config.reward_model, "gold": config.gold}
    if config.policy_score == "logprob_ratio":
        roles["reference"] = config.reference
    return {role: name for role, name in roles.items() if name}


def _completions(config: RunConfig, left: list[str], prompts: int, eval_prompts: int) -> int:
    """Answers of the tables that are left to sample."""
    best_of_n = config.rl.best_of_n.n if config.rl.algorithm == "best_of_n" else 1
    found = 0
    for name in left:
        if name.endswith("/candidates.parquet"):
            found += prompts * config.sampling.num_completions
        elif name.endswith("/evaluation_candidates.parquet"):
            kept = eval_prompts * config.evaluation.sampling.num_completions
            found += kept if name.startswith("round-0/") else kept * best_of_n
        elif name.endswith("/bootstrap.parquet") and config.bootstrap:
            found += (
                len(read_prompts(config.bootstrap.prompts, config.columns()))
                * config.bootstrap.sampling.num_completions
            )
    return found


def _rollouts(config: RunConfig, left: list[str]) -> int:
    """Answers that the policy's training will sample."""
    settings = getattr(config.rl, config.rl.algorithm)
    policies = sum(name.endswith("/policy") and not name.startswith("round-0/") for name in left)
    return policies * getattr(settings, "num_rollouts", 0) * getattr(settings, "rollout_batch_size", 0)


def _needed(config: RunConfig, left: list[str], models: dict[str, Any], completions: int) -> int:
    """Rough estimate of the bytes that the stages which are left will write."""
    outputs = []
    for name in left:
        role = name.rpartition("/")[2]
        if role in ("policy", "reward_model") and role in models:
            training = (
                (config.proxy if name.startswith("round-0/") else config.reward) if role == "reward_model" else None
            )
            members = training.ensemble_size if training and not training.average_weights else 1
            outputs.append(members * models[role]["bytes"])
    return sum(outputs) + CHECKPOINT * max(outputs, default=0) + ANSWER_BYTES * completions
