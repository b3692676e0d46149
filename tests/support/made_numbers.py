"""A task of numbers that is made up: a linear gold reward, two groups."""

import numpy as np

from experiments.numbers import Numbers


def made(prompts: int = 60, answers: int = 8, size: int = 12, pairs: int = 400, own: bool = False) -> Numbers:
    """Gold is linear in the features; groups `a` to `d` have features of their own, as a blind spot needs."""
    rng = np.random.default_rng(0)
    count = prompts * answers
    groups = np.array(list("abcd"))[np.arange(prompts) % 4]
    weight = rng.standard_normal(size)

    def features(group: np.ndarray) -> np.ndarray:
        plain = rng.standard_normal((len(group), size))
        return np.concatenate([plain * (group == g)[:, None] for g in "abcd"], axis=1)

    of_answers = features(groups.repeat(answers))
    pair_groups = np.array(list("abcd"))[np.arange(pairs) % 4]
    one, other = features(pair_groups), features(pair_groups)
    heads = np.tile(weight, 4)
    difference = one - other
    difference *= np.where(difference @ heads > 0, 1, -1)[:, None]
    gold = of_answers @ heads
    return Numbers(
        prompts=np.array([f"p{i:03d}" for i in range(prompts)]),
        groups=groups,
        offsets=np.arange(prompts + 1) * answers,
        texts=np.arange(count),
        gold=gold,
        logprobs=rng.standard_normal(count) - 20,
        reference=rng.standard_normal(count) - 20,
        tuned=rng.standard_normal((count, 2)) - 20,
        examples=np.array([10, 30]),
        tokens=rng.integers(3, 20, count),
        words=rng.integers(2, 15, count),
        temperature=np.tile([0.7] * (answers // 2) + [1.1] * (answers // 2), prompts),
        features=of_answers,
        pairs=difference,
        pair_groups=pair_groups,
        pair_words=rng.integers(-5, 6, pairs),
        pair_prompts=np.arange(pairs) % prompts if own else np.full(pairs, -1),
    )
