"""Answers whose gold reward is linear in their features, and a proxy with a blind spot: half of the topics."""

from typing import Any

import numpy as np

from shfcas.compare import AnswerSet, Bench, head_bench

FEATURES, TOPICS = 12, ("food", "travel")


def answers(prompts: int, count: int, informed: float, rng: np.random.Generator, prefix: str) -> AnswerSet:
    """Gold is the first feature, which the proxy reads the wrong way round for travel; the policy is `informed` by it.

    The features are the answer's, once for either topic, so that a linear head can tell the topics apart.
    """
    rows, features, golds = [], [], []
    for i in range(prompts):
        x = rng.normal(size=(count, FEATURES // 2))
        blind = i % 2 == 1
        gold = x[:, 0]
        both = np.concatenate([x * (not blind), x * blind], axis=1)
        rows.append(
            {
                "prompt_id": f"{prefix}{i}",
                "prompt": f"question {i}",
                "topic": TOPICS[blind],
                "completions": [f"answer {i}.{k}" for k in range(count)],
                "rewards": (both @ proxy()).tolist(),
                "logprobs": (informed * gold + rng.normal(size=count)).tolist(),
            }
        )
        features.append(both)
        golds.append(gold.tolist())
    return AnswerSet.from_rows(rows, golds, np.concatenate(features).astype(np.float32))


def proxy() -> np.ndarray:
    weight = np.zeros(FEATURES)
    weight[0], weight[FEATURES // 2] = 1.0, -1.0
    return weight


def bench(informed: float = 1.0, prompts: int = 40, count: int = 5, seed: int = 0, **options: Any) -> Bench:
    rng = np.random.default_rng(seed)
    pool = answers(prompts, count, informed, rng, "pool")
    held_out = answers(20, count, informed, rng, "held")
    earlier = rng.normal(size=(60, FEATURES))
    earlier *= np.sign(earlier @ proxy())[:, None]  # the annotators of the proxy were wrong about travel
    settings = {"group_by": "topic", "blind": ["travel"], "new_pair_weight": 3.0, "l2": 1.0, **options}
    return head_bench(pool, held_out, earlier=earlier, head=proxy(), **settings)
