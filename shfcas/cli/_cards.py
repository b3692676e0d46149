"""Cards of what the commands make, for `--push_to_hub`."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from shfcas.data.candidates import read_prompts
from shfcas.data.preferences import Preference, read_preferences
from shfcas.hub.cards import Row, metric, model_card, preferences_card, shown, without_names
from shfcas.hub.upload import HubOptions
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.results import results
from shfcas.utils.config import lasting
from shfcas.utils.files import read_numbers, write_jsonl

GENERATION, SCORES = "text-generation", "text-classification"
LAST_ROLLOUT = (
    "Means over the answers of the last rollout, without intervals. Measure the policy on held-out prompts with "
    "`shfcas evaluate`."
)
PREFERENCES = "preferences.jsonl"


def settings_for_card(config: Any) -> dict[str, Any]:
    """Returns the settings that results depend on, without those of the upload and of the output."""
    upload = {field.name for field in dataclasses.fields(HubOptions)}
    return {key: value for key, value in lasting(config).items() if key not in {*upload, "output"}}


def reward_card(config: Any, result: dict[str, Any]) -> str:
    """Returns the card of a reward model of `shfcas train-reward`."""
    files = ", ".join(map(shown, config.preferences))
    return model_card(
        shown(config.output),
        f"A {config.objective} model that scores answers, trained on pairwise preferences.",
        base=config.model,
        task=SCORES,
        data=[("preferences", files), *_pairs(result)],
        metrics=_reward_metrics(result),
        seed=config.seed,
        settings=settings_for_card(config),
    )


def policy_card(config: Any, algorithm: str, result: dict[str, Any]) -> str:
    """Returns the card of a policy that a command trained."""
    data: list[Row] = [("reward", shown(config.reward_model)), ("gold reward, only logged", shown(config.gold))]
    source = getattr(config, "prompts", None) or getattr(config, "candidates", None)
    return model_card(
        shown(config.output),
        f"A language model, fine-tuned against a reward with {algorithm.upper()}.",
        base=config.policy,
        task=GENERATION,
        data=[("prompts", shown(source)), *data],
        metrics=[metric(name, value) for name, value in result.items() if isinstance(value, (int, float))],
        seed=config.seed,
        settings=settings_for_card(config),
        note=LAST_ROLLOUT,
    )


def sft_card(config: Any, result: dict[str, Any]) -> str:
    """Returns the card of a policy of `shfcas sft`."""
    return model_card(
        shown(config.output),
        "A language model, fine-tuned on demonstrations.",
        base=config.policy,
        task=GENERATION,
        data=[("demonstrations", f"{shown(config.demonstrations)}, {result['demonstrations']} rows")],
        metrics=[metric("loss of the last step", result["loss"]), metric("optimizer steps", result["steps"])],
        seed=config.seed,
        settings=settings_for_card(config),
        note="The loss is that of training.",
    )


def push_preferences(
    hub: HubOptions, preferences: list[Preference], *, about: str, data: list[Row], seed: int | None
) -> str:
    """Uploads preferences without names of annotators, with their card; returns the address."""
    assert hub.push_to_hub
    card = preferences_card(hub.push_to_hub.split("/")[1], preferences, about=about, data=data, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PREFERENCES
        write_jsonl(path, without_names(preferences))
        return hub.push(card, path, kind="dataset") or ""


def push_run(hub: HubOptions, config: RunConfig) -> list[str]:
    """Uploads what a finished run made: its last policy, its last reward model, and all labels of its rounds.

    The repositories are `push_to_hub` with -policy, -reward-model and -preferences. Returns their addresses.
    """
    run, rows = Path(config.output), results(config, Path(config.output))
    last = run / f"round-{config.rounds}"
    found = [path for number in range(1, config.rounds + 1) if (path := run / f"round-{number}" / PREFERENCES).exists()]
    preferences = [preference for path in found for preference in read_preferences(path)]
    data = _data(config)
    common: dict[str, Any] = {"seed": config.seed, "settings": settings_for_card(config)}
    pushed = []

    def part(name: str) -> HubOptions:
        return HubOptions(f"{hub.push_to_hub}-{name}", hub.hub_public)

    if (last / "policy").is_dir():
        about = f"A language model, fine-tuned with {config.rl.algorithm.upper()} against a reward model."
        metrics = [row for result in rows for row in _policy_metrics(result)]
        target = part("policy")
        card = model_card(
            _title(target), about, base=config.policy, task=GENERATION, data=data, metrics=metrics, **common
        )
        pushed.append(target.push(card, last / "policy"))
    if (last / "reward_model").is_dir():
        trained = read_numbers(last / "reward_model" / "training.json")
        about = "A reward model that was refined with labels on the answers where it and a policy disagree most."
        target = part("reward-model")
        card = model_card(
            _title(target),
            about,
            base=config.reward_model,
            task=SCORES,
            data=[*data, *_pairs(trained)],
            metrics=_reward_metrics(trained),
            **common,
        )
        pushed.append(target.push(card, last / "reward_model"))
    if preferences:
        about = "Labels on pairs of answers that a policy and its reward model rank differently."
        pushed.append(push_preferences(part("preferences"), preferences, about=about, data=data, seed=config.seed))
    return [address for address in pushed if address]


def _title(hub: HubOptions) -> str:
    assert hub.push_to_hub
    return hub.push_to_hub.split("/")[1]


def _data(config: RunConfig) -> list[Row]:
    """Facts about a run's data and labels."""
    prompts = read_prompts(config.prompts, config.columns())[: config.max_prompts]
    held_out = read_prompts(config.eval_prompts, config.columns())
    return [
        ("prompts", f"{shown(config.prompts)}, {len(prompts)} rows"),
        ("held-out prompts", f"{shown(config.eval_prompts)}, {len(held_out)} rows"),
        ("original preferences", shown(config.preferences)),
        ("strategy", config.selection.strategy),
        ("label budget", f"{config.selection.budget} comparisons in each of {config.rounds} rounds"),
        ("labelled by", config.feedback),
        ("gold reward", shown(config.gold)),
    ]


def _policy_metrics(row: dict[str, Any]) -> list[Row]:
    """Rows about one round: what `shfcas run` prints at its end."""
    at = f"round {row['round']}"
    found = [metric(f"{at}: KL to the base policy, nats", row["kl"])]
    names = {"gold_reward": "gold reward", "difference": "gold reward minus round 0", "win_rate": "win rate by gold"}
    found += [metric(f"{at}: {name}", row[key]) for key, name in names.items() if row.get(key) is not None]
    if judged := row.get("judged", {}).get("win_rate"):
        found.append(metric(f"{at}: win rate by {row['judged']['judge']}", judged, row["judged"]["answered"]))
    return found


def _pairs(trained: dict[str, Any]) -> list[Row]:
    by_source = ", ".join(f"{source}: {count}" for source, count in trained["pairs_by_source"].items())
    return [("training pairs", f"{trained['pairs']} ({by_source})")]


def _reward_metrics(trained: dict[str, Any]) -> list[Row]:
    """Rows about a reward model, from the metrics of its training."""
    rows = [metric("accuracy on training pairs", trained["train"]["accuracy"])]
    if held_out := trained.get("held_out"):
        rows.append(metric("accuracy on held-out pairs", held_out["accuracy"]))
        rows.append(metric("accuracy on held-out pairs before training", trained["before"]["accuracy"]))
        rows.append(metric("held-out loss", held_out["loss"]))
        rows.append(metric("expected calibration error", held_out["calibration"]["expected_error"]))
    return rows
