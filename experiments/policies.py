"""Collect the metrics of the policies of `make experiments-ppo` in a table: `python -m experiments.policies`."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.grid import RESULTS, commit, machine, write_table
from shfcas.utils.files import read_json, read_numbers, write_json

RUN = Path("runs/experiments/ppo")
BEFORE = "before"  # the policy at the start of PPO


def policies(run: Path) -> Iterator[dict[str, Any]]:
    """Yield one row per evaluated policy, and one for the policy before PPO."""
    yield row(run / "round-0" / "metrics.json", BEFORE)
    found = [(*path.parts[-4:-1], path) for path in run.glob("policies/*/budget-*/seed-*/metrics.json")]
    for strategy, budget, seed, path in sorted(found):
        yield row(path, strategy, int(budget.removeprefix("budget-")), int(seed.removeprefix("seed-")))


def row(path: Path, strategy: str, budget: int = 0, seed: int = 0) -> dict[str, Any]:
    """Return one evaluation: gold reward, win rate and KL against the policy before, tokens, pair accuracy."""
    metrics = read_numbers(path)
    return {
        "strategy": strategy,
        "budget": budget,
        "seed": seed,
        "gold_reward": metrics["gold_reward"]["mean"],
        "win_rate": metrics["win_rate"]["mean"],
        "kl": metrics["kl"],
        "length": metrics["mean_length"],
        "pair_accuracy": metrics["pair_accuracy"],
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=RUN, help="the comparison's folder")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = list(policies(options.run))
    write_table(options.output / "ppo.csv", rows)
    about = options.output / "about.json"
    entries = read_json(about) if about.exists() else {}
    seeds = len({row["seed"] for row in rows})
    entries["ppo"] = {"command": "make experiments-ppo", "commit": commit(), "machine": machine(), "seeds": seeds}
    write_json(about, dict(sorted(entries.items())))


if __name__ == "__main__":
    main()
