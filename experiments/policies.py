"""What the policies of `make experiments-ppo` are worth, as a table: `python -m experiments.policies`."""

import argparse
from pathlib import Path

from experiments.grid import RESULTS, commit, machine, write_table
from shfcas.files import read_json, read_parquet, write_json

RUN = Path("runs/experiments/ppo")
METRICS = ("policy_gold_reward", "policy_win_rate", "policy_kl")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=RUN, help="the comparison's folder")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    policies: dict[tuple, dict] = {}
    for row in read_parquet(options.run / "results.parquet").to_pylist():
        if row["metric"] in METRICS:
            at = {name: row[name] for name in ("strategy", "budget", "seed")}
            policies.setdefault(tuple(at.values()), at)[row["metric"]] = row["value"]
    write_table(options.output / "ppo.csv", [policies[at] for at in sorted(policies)])
    about = options.output / "about.json"
    entries = read_json(about) if about.exists() else {}
    seeds = len({seed for _, _, seed in policies})
    entries["ppo"] = {"command": "make experiments-ppo", "commit": commit(), "machine": machine(), "seeds": seeds}
    write_json(about, dict(sorted(entries.items())))


if __name__ == "__main__":
    main()
