"""Results of a finished run as one table: a row per round, for the terminal and for programs."""

from pathlib import Path
from typing import Any

import numpy as np

from shfcas.data.candidates import read_candidates
from shfcas.evaluation.statistics import mean_with_interval
from shfcas.feedback.label_counts import label_counts
from shfcas.pipeline.config import RunConfig
from shfcas.utils.files import read_json, read_numbers

GAP = "  "


def results(config: RunConfig, run: Path) -> list[dict[str, Any]]:
    """Returns a row per round of a finished run.

    Args:
        config: the configuration of the run.
        run: the run directory.

    Returns:
        Rows with `round`, `kl` (nats), `minutes` and, for rounds with feedback, `labels`, see `label_counts`. With gold
        also `gold_reward` and `win_rate` (mean, low, high); `difference` of the gold reward to round 0, paired
        over the held-out prompts (mean, low, high); `distinguishable`, whether its 95 % interval excludes 0; and
        `accuracy_before` and `accuracy_after`, of the reward model before and after the round's labels. Where people
        or a language model compared the policy with the base, `judged`, see `shfcas.pipeline.evaluation`. `cost`: of
        the language model in this round, if its prices are known.
    """
    stages = read_json(run / "manifest.json")["stages"]
    found: list[dict[str, Any]] = []
    first = _gold(run, 0)
    accuracy = None
    for number in range(config.rounds + 1):
        folder = f"round-{number}"
        metrics = read_numbers(run / folder / "metrics.json")
        seconds = sum(stage["seconds"] for name, stage in stages.items() if name.startswith(f"{folder}/"))
        row: dict[str, Any] = {"round": number, "kl": metrics["kl"], "minutes": seconds / 60}
        if number and config.feedback != "none":
            row["labels"] = label_counts(run, run / folder, config.feedback, config.selection.budget)
        if number and config.compares_blindly(number):
            row["judged"] = read_json(run / folder / "win_rate.json")
        if (cost := _cost(run / folder, row.get("judged", {}))) is not None:
            row["cost"] = cost
        if first is not None:
            row |= {"gold_reward": metrics["gold_reward"], "win_rate": metrics["win_rate"]}
            row |= {"accuracy_before": accuracy, "accuracy_after": metrics["pair_accuracy"]}
            accuracy = metrics["pair_accuracy"]
            now = _gold(run, number)
            if number and now is not None:
                difference = mean_with_interval([now[prompt] - before for prompt, before in first.items()])
                row["difference"] = difference
                row["distinguishable"] = not difference["low"] <= 0 <= difference["high"]
        found.append(row)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Formats the rows of `results` as a table with aligned columns; a dash is an unknown value."""
    has_gold = any("gold_reward" in row for row in rows)
    heads = ["round"]
    if has_gold:
        heads += ["gold reward", "minus round 0 [95 %]", "win rate", "accuracy before", "after"]
    judged = next((f"win rate by {row['judged']['judge']} [95 %]" for row in rows if "judged" in row), "")
    if judged:
        heads += [judged, "compared"]
    if any("labels" in row for row in rows):
        heads += ["asked", "answered", "ties", "budget"]
    heads += ["KL", "minutes", *(["cost"] if any("cost" in row for row in rows) else [])]
    lines = [heads]
    for row in rows:
        cells = {"round": str(row["round"]), "KL": f"{row['kl']:z.2f}", "minutes": f"{row['minutes']:z.1f}"}
        cells |= {name: f"{count:,}" for name, count in row.get("labels", {}).items()}
        if "gold_reward" in row:
            cells |= {
                "gold reward": f"{row['gold_reward']['mean']:z.3f}",
                "win rate": f"{row['win_rate']['mean']:z.3f}",
            }
            cells |= {"accuracy before": _share(row["accuracy_before"]), "after": _share(row["accuracy_after"])}
        if "judged" in row:
            cells[judged] = _interval(row["judged"]["win_rate"])
            cells["compared"] = f"{row['judged']['answered']:,} of {row['judged']['asked']:,}"
        if "cost" in row:
            cells["cost"] = f"{row['cost']:.4g}"
        if "difference" in row:
            cells["minus round 0 [95 %]"] = _difference(row)
        lines.append([cells.get(head, "-") for head in heads])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [GAP.join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(aligned)


def _difference(row: dict[str, Any]) -> str:
    d = row["difference"]
    note = "" if row["distinguishable"] else " not distinguishable"
    return f"{d['mean']:+z.3f} [{d['low']:+z.3f}, {d['high']:+z.3f}]{note}"


def _interval(value: dict[str, float] | None) -> str:
    """Formats a mean with its interval; a dash is an unknown value."""
    return f"{value['mean']:z.3f} [{value['low']:z.3f}, {value['high']:z.3f}]" if value else "-"


def _cost(folder: Path, judged: dict[str, Any]) -> float | None:
    """Cost of a language model in a round: its labels and its comparisons of policies."""
    labels = folder / "judge.json"
    reports = [judged.get("report"), read_json(labels) if labels.exists() else None]
    costs = [report["cost"] for report in reports if report and report.get("cost") is not None]
    return sum(costs) if costs else None


def _share(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:z.3f}"


def _gold(run: Path, number: int) -> dict[str, float] | None:
    """Mean gold reward of each held-out prompt in a round; None without a gold reward."""
    answers = read_candidates(run / f"round-{number}" / "evaluation.parquet")
    if "gold" not in answers:
        return None
    return {
        prompt: float(np.mean(gold))
        for prompt, gold in zip(answers.column("prompt_id"), answers.column("gold"), strict=True)
    }
