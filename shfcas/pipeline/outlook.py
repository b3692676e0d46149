"""Outlook of a run: what the stages that are left will sample, ask, take and write, before any is made."""

import shutil
from pathlib import Path
from typing import Any

from shfcas.data.candidates import read_prompts
from shfcas.models.resolve import WEIGHTS, adapter_base, resolve
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.manifest import DONE
from shfcas.pipeline.run_directory import Plan
from shfcas.pipeline.workload import Workload, judge_tokens
from shfcas.rewards.scorers import ensemble_members
from shfcas.utils.callables import is_callable_name
from shfcas.utils.progress import duration

ANSWER_BYTES = 2000  # of a table, per answer: text, token ids and numbers
CHECKPOINT = 6  # two checkpoints of a model in training, each with two moments per weight


def outlook(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """Counts what the stages that are not done will take.

    Args:
        config: the configuration of the run.
        plan: its stages.

    Returns:
        `models`: role to `name` and `bytes` on disk. `prompts` and `eval_prompts`: numbers. `comparisons`: the most
        that will be labelled, and `compared`: the most pairs that people or a language model will compare.
        `completions`: answers to sample into tables, `rollouts`: answers to sample in training, and `tokens`: the most
        tokens of both. `judge`: what a language model will read and write, see
        `shfcas.pipeline.workload.judge_tokens`; None if it is not asked. `time`: `seconds` of the stages for which this
        run has a measured rate, how many stages are `estimated`, how many `unknown`, and how many wait for `people`.
        `disk`: `needed` and `free` in bytes; the need is a rough estimate.
    """
    left = [stage.name for stage in plan.stages if stage.state != DONE]
    columns = config.columns()
    rows = read_prompts(config.prompts, columns)[: config.max_prompts]
    unlabelled = read_prompts(config.unlabelled_prompts, columns) if config.unlabelled_prompts else []
    work = Workload(config, len(rows), len(read_prompts(config.eval_prompts, columns)), len(unlabelled))
    models = {
        role: {"name": name, "bytes": model_bytes(name)}
        for role, name in _models(config).items()
        if not is_callable_name(name)
    }
    completions = sum(work.completions(name) for name in left if work.tokens(name))
    rollouts = work.rollouts() * sum(name.endswith("/policy") and not name.startswith("round-0/") for name in left)
    longest = getattr(getattr(config.rl, config.rl.algorithm), "max_completion_length", 0)
    asked = {
        source: sum(work.comparisons(name) for name in left if name.endswith(output))
        for source, output in (("feedback", "/preferences.jsonl"), ("evaluation", "/win_rate.json"))
    }
    by_judge = asked["feedback"] * (config.feedback == "judge")
    by_judge += asked["evaluation"] * (config.evaluation.judge == "judge")
    return {
        "models": models,
        "prompts": work.prompts,
        "eval_prompts": work.eval_prompts,
        "comparisons": asked["feedback"],
        "compared": asked["evaluation"],
        "completions": completions,
        "rollouts": rollouts,
        "tokens": sum(map(work.tokens, left)) + rollouts * longest,
        "judge": judge_tokens(config, by_judge, rows) if by_judge else None,
        "time": _time(plan),
        "disk": {"needed": _needed(config, left, models, completions), "free": free_bytes(Path(config.output))},
    }


def _time(plan: Plan) -> dict[str, Any]:
    """Seconds of the stages that are left, as far as this run has measured rates."""
    left = [stage for stage in plan.stages if stage.state != DONE]
    people = sum(stage.asks_people for stage in left)
    known = [stage.seconds for stage in left if stage.seconds is not None]
    unknown = len(left) - len(known) - people
    return {"seconds": sum(known), "estimated": len(known), "unknown": unknown, "people": people}


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
    rows.append(("prompts", f"{found['prompts']:,} and {found['eval_prompts']:,} held out"))
    compared = f", and {found['compared']:,} pairs to compare with the base" if found["compared"] else ""
    rows += [
        ("comparisons", f"at most {found['comparisons']:,} to label{compared}"),
        ("completions", f"{found['completions']:,} to sample, and {found['rollouts']:,} in training"),
        ("tokens", f"at most {found['tokens']:,} to sample, also in training"),
        *([("judge", _judge(found["judge"]))] if found["judge"] else []),
        ("time", _duration(found["time"])),
        ("disk", f"about {size(found['disk']['needed'])} needed, {size(found['disk']['free'])} free"),
    ]
    lines = [f"{key + ':':<14}{value}" for key, value in rows]
    if found["disk"]["needed"] > found["disk"]["free"]:
        lines.append("warning: the disk may be too small; free some space, or name another folder with --output")
    return lines


def _judge(found: dict[str, Any]) -> str:
    """The judge's tokens and price."""
    price = (
        "set judge.price_per_million_input and judge.price_per_million_output to see the price"
        if found["price"] is None
        else f"price {found['price']:.4g}"
    )
    source = "about" if found["measured"] else "at most about"
    return f"{source} {found['input_tokens']:,} tokens to send and {found['output_tokens']:,} to receive; {price}"


def _duration(time: dict[str, Any]) -> str:
    """The time of the stages that are left."""
    parts = []
    if time["estimated"]:
        parts.append(f"about {duration(time['seconds'])} for {time['estimated']:,} stages")
    if time["unknown"]:
        parts.append(f"no measured rate yet for {time['unknown']:,} stages")
    if time["people"]:
        parts.append(f"{time['people']:,} stages wait for people")
    return "; ".join(parts) or "nothing is left to do"


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
