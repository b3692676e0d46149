"""One cell of a comparison with a linear head, in processor seconds: 300 prompts of 8 answers, 384 features."""

import argparse
import json
import statistics
import time

import numpy as np
import torch

from shfcas.compare import AnswerSet, Bench, Cell, head_bench, run_cell
from shfcas.selection import SelectionConfig

ANSWERS, FEATURES, EARLIER = 8, 384, 1280


def answers(prompts: int, proxy: np.ndarray, gold: np.ndarray, rng: np.random.Generator, prefix: str) -> AnswerSet:
    x = rng.normal(size=(prompts, ANSWERS, FEATURES))
    rows = [
        {
            "prompt_id": f"{prefix}{i}",
            "prompt": f"question {i}",
            "completions": [f"answer {k}" for k in range(ANSWERS)],
            "rewards": (features @ proxy).tolist(),
            "logprobs": (features @ gold + rng.normal(size=ANSWERS)).tolist(),
        }
        for i, features in enumerate(x)
    ]
    return AnswerSet.from_rows(rows, (x @ gold).tolist(), x.reshape(-1, FEATURES).astype(np.float32))


def bench(prompts: int) -> Bench:
    rng = np.random.default_rng(0)
    gold = rng.normal(size=FEATURES) / FEATURES**0.5
    proxy = np.where(np.arange(FEATURES) < FEATURES // 3, -gold, gold)
    earlier = rng.normal(size=(EARLIER, FEATURES))
    earlier *= np.sign(earlier @ proxy)[:, None]
    pool, held_out = (answers(n, proxy, gold, rng, name) for name, n in (("pool", prompts), ("held-out", 100)))
    return head_bench(pool, held_out, earlier=earlier, head=proxy, new_pair_weight=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    started = time.process_time()
    shared, results = bench(arguments.prompts), {}
    print(f"what all cells share: {time.process_time() - started:.2f} s; a cell, median of {arguments.seeds} seeds:")
    for strategy in ("random", "shf_cas", "mean_pacs"):
        for budget in (50, 200):
            times = []
            for seed in range(arguments.seeds):
                started = time.process_time()
                run_cell(shared, Cell(strategy, budget, seed), SelectionConfig(strategy=strategy))
                times.append(time.process_time() - started)
            results[f"{strategy}, {budget}"] = round(statistics.median(times), 4)
            print(f"  {strategy:<12} {budget:>4} comparisons  {statistics.median(times):.3f} s")
    print(json.dumps({"torch": torch.__version__, "prompts": arguments.prompts, "seconds": results}))


if __name__ == "__main__":
    main()
