"""A task as numbers: everything that an experiment needs to know about answers, without their texts."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

EXAMPLES = {"sentiment": (10, 30), "safety": (10, 30, 300)}  # for policies that score answers, but sample none
FEATURES = ("features", "pairs")
PER_ANSWER = ("texts", "gold", "logprobs", "reference", "tuned", "tokens", "words", "temperature", "features")


@dataclass(frozen=True)
class Numbers:
    """P prompts with T answers, and n pairs for training a proxy.

    Attributes:
        prompts: the prompts' ids, shape (P,).
        groups: the group (topic, category) of each prompt, shape (P,).
        offsets: where each prompt's answers begin, shape (P + 1,).
        texts: a number for each text, equal for equal texts, shape (T,).
        gold: the gold reward of each answer, shape (T,).
        logprobs: log-probabilities under the policy, shape (T,).
        reference: log-probabilities under the reference, shape (T,).
        tuned: log-probabilities under K policies that were fine-tuned on other numbers of examples, shape (T, K).
        examples: the numbers of examples of these policies, shape (K,).
        tokens: the length of each answer in tokens, shape (T,).
        words: the length of each answer in words, shape (T,).
        temperature: the sampling temperature of each answer, 0 if it was not sampled, shape (T,).
        features: the input of a head for each answer, shape (T, D).
        pairs: features of the better answer minus those of the worse one, shape (n, D).
        pair_groups: the group of each pair's prompt, shape (n,).
        pair_words: words of the better answer minus words of the worse one, shape (n,).
        pair_prompts: the position of each pair's prompt among the prompts, -1 if it is none of them, shape (n,).
    """

    prompts: np.ndarray
    groups: np.ndarray
    offsets: np.ndarray
    texts: np.ndarray
    gold: np.ndarray
    logprobs: np.ndarray
    reference: np.ndarray
    tuned: np.ndarray
    examples: np.ndarray
    tokens: np.ndarray
    words: np.ndarray
    temperature: np.ndarray
    features: np.ndarray
    pairs: np.ndarray
    pair_groups: np.ndarray
    pair_words: np.ndarray
    pair_prompts: np.ndarray

    def save(self, path: Path) -> None:
        """Write all arrays as one compressed file, features in half precision."""
        partial = path.with_suffix(".partial.npz")
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        np.savez_compressed(partial, **arrays | {name: arrays[name].astype(np.float16) for name in FEATURES})
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Numbers":
        """Read a file that `save` or `quantised` has written."""
        with np.load(path) as arrays:
            values = {f.name: arrays[f.name] for f in fields(cls)}
        if values["features"].dtype == np.int8:
            values |= {name: values[name].astype(np.float64) / STEPS for name in FEATURES}
        else:
            values |= {name: values[name].astype(np.float32) for name in FEATURES}
        return cls(**values)

    def answers(self, chosen: np.ndarray) -> "Numbers":
        """Return the same task with only the answers of a mask of shape (T,)."""
        counts = np.add.reduceat(chosen, self.offsets[:-1])
        return replace(
            self,
            offsets=np.concatenate([[0], counts.cumsum()]),
            **{name: getattr(self, name)[chosen] for name in PER_ANSWER},
        )

    def quantised(self, path: Path) -> None:
        """Write the task in a fraction of the size: features as signed bytes, other numbers in half precision."""
        half = ("gold", "logprobs", "reference", "tuned", "temperature")
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays |= {name: arrays[name].astype(np.float16) for name in half}
        arrays |= {n: (arrays[n] * STEPS).round().clip(-127, 127).astype(np.int8) for n in FEATURES}
        arrays |= {n: arrays[n].astype(np.int16) for n in ("texts", "tokens", "words", "pair_words", "pair_prompts")}
        np.savez_compressed(path, **arrays)


STEPS = 20  # per unit of a quantised feature: features have a deviation of 1, differences reach about 6
