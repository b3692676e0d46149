"""Turn pools into numbers without texts: `python -m experiments.opinion.numbers --data DATA`.

Writes `experiments/data/opinion/TASK-POLICY-DRAW.npz`, from which all tables about heads are made.
"""

import argparse
import logging
import random
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from experiments.annotators import SafetyAnnotator
from experiments.features import GOLD_EXCHANGES, Embedder
from experiments.loaders import diasafety
from experiments.opinion.pools import ROOT, read_pool
from experiments.opinion.tasks import TASKS
from experiments.pools import DIASAFETY
from shfcas.compare.crossed import Crossed
from shfcas.data.candidates import CandidateTable
from shfcas.demo.sentiment import gold as sentiment
from shfcas.rewards.prompt_groups import clusters

logger = logging.getLogger(__name__)

DATA = Path(__file__).parents[1] / "data" / "opinion"
CLUSTERS = 4
STEPS = 20  # per unit of a stored feature: features have a deviation of 1 and reach about 6
PER_ANSWER = ("texts", "gold", "logprobs", "tokens", "contrasts", "words", "features")


@dataclass(frozen=True)
class Numbers:
    """P prompts with T answers.

    Attributes:
        prompts: the prompts' ids, shape (P,).
        groups: the group of each prompt, in some of which a proxy can be blind, shape (P,).
        known: the group of each prompt that the arbiter is told, shape (P,). Those of `helpfulness` are clusters of
            the prompts' embeddings, because its `groups` follow from gold.
        offsets: where each prompt's answers begin, shape (P + 1,).
        texts: a number for each text, equal for equal texts, shape (T,).
        gold: the gold reward of each answer, shape (T,).
        logprobs: log-probability of each answer under the policy, shape (T,).
        tokens: the length of each answer in tokens, shape (T,).
        contrasts: the contrast of each answer in K wordings, shape (T, K).
        words: the length of each answer in words, shape (T,).
        features: the input of a head for each answer, shape (T, D).
    """

    prompts: np.ndarray
    groups: np.ndarray
    known: np.ndarray
    offsets: np.ndarray
    texts: np.ndarray
    gold: np.ndarray
    logprobs: np.ndarray
    tokens: np.ndarray
    contrasts: np.ndarray
    words: np.ndarray
    features: np.ndarray

    def save(self, path: Path) -> None:
        """Write all arrays as one compressed file: features as signed bytes, other reals in single precision."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays |= {name: arrays[name].astype(np.float32) for name in ("gold", "logprobs", "contrasts")}
        arrays |= {name: arrays[name].astype(np.int32) for name in ("texts", "tokens", "words", "offsets")}
        arrays["features"] = (arrays["features"] * STEPS).round().clip(-127, 127).astype(np.int8)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez_compressed(partial, **arrays)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Numbers":
        """Read what `save` has written."""
        with np.load(path) as arrays:
            values = {f.name: arrays[f.name] for f in fields(cls)}
        values |= {name: values[name].astype(np.float64) for name in ("gold", "logprobs", "contrasts")}
        return cls(**values | {"features": values["features"].astype(np.float64) / STEPS})

    def part(self, prompts: np.ndarray) -> "Numbers":
        """Return the same task with only the prompts at these positions."""
        at = np.concatenate([np.arange(self.offsets[i], self.offsets[i + 1]) for i in prompts])
        counts = np.diff(self.offsets)[prompts]
        names = ("prompts", "groups", "known")
        return replace(
            self,
            offsets=np.concatenate([[0], counts.cumsum()]),
            **{name: getattr(self, name)[prompts] for name in names},
            **{name: getattr(self, name)[at] for name in PER_ANSWER},
        )


def numbers_of(
    task: str, table: CandidateTable, data: Path, embed: Embedder, crossed: Crossed | None = None
) -> tuple[Numbers, Crossed]:
    """Return a pool as numbers, and how its features are made; the same features for another pool of the task."""
    rows = table.rows()
    answers = [text for row in rows for text in row.get("whole") or row["completions"]]
    counts = [len(row["completions"]) for row in rows]
    questions = [row["question"] for row in rows]
    asked = [question for question, count in zip(questions, counts, strict=True) for _ in range(count)]
    of_asked, of_answers = embed(asked), embed(answers)
    offsets = table.offsets().numpy()
    words = np.array([len(text.split()) for text in answers])
    if task == "sentiment":
        gold, groups = sentiment([""] * len(answers), answers), [row["group"] for row in rows]
    elif task == "safety":
        gold, groups = _safety(data, embed, asked, answers, questions)
    else:
        gold = [value for row in rows for value in row["gold"]]
        groups = [row.get("group") for row in rows]
    known = groups
    if task == "helpfulness":
        groups = _which_length_wins(offsets, words, np.array(gold))
        known = clusters(embed(questions), CLUSTERS, seed=0)
    place = {text: number for number, text in enumerate(dict.fromkeys(answers))}
    crossed = crossed or Crossed(of_asked, of_answers)
    contrasts = [table.values(f"contrast_{i}").numpy() for i in range(3) if f"contrast_{i}" in table]
    numbers = Numbers(
        prompts=np.array([row["prompt_id"] for row in rows]),
        groups=np.array(groups, str),
        known=np.array(known, str),
        offsets=offsets,
        texts=np.array([place[text] for text in answers]),
        gold=np.asarray(gold, float),
        logprobs=table.values("logprobs").numpy(),
        tokens=table.values("num_tokens").numpy(),
        contrasts=np.array(contrasts).reshape(len(contrasts), len(answers)).T,
        words=words,
        features=crossed(of_asked, of_answers),
    )
    return numbers, crossed


def _safety(
    data: Path, embed: Embedder, asked: list[str], answers: list[str], questions: list[str]
) -> tuple[np.ndarray, list[str]]:
    """Return gold of the classifier of DiaSafety, and the category that each question most looks like."""
    from sklearn.linear_model import LogisticRegression

    exchanges = [e for e in diasafety(data / DIASAFETY) if len(e.response.split()) <= 60]
    random.Random(0).shuffle(exchanges)
    learned = exchanges[:GOLD_EXCHANGES]
    contexts, responses = (embed([getattr(e, name) for e in learned]) for name in ("context", "response"))
    annotator = SafetyAnnotator(learned, contexts, responses)
    categorise = LogisticRegression(max_iter=1000, C=10).fit(contexts, [e.category for e in learned])
    gold = annotator(asked, answers, embed(asked), embed(answers))
    return gold, list(categorise.predict(embed(questions)))


def _which_length_wins(offsets: np.ndarray, words: np.ndarray, gold: np.ndarray) -> list[str]:
    found = []
    for start, end in pairwise(offsets):
        shorter = np.cov(words[start:end].astype(float), gold[start:end])[0, 1] < 0
        found.append("shorter is better" if shorter else "longer is better")
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets, see experiments/README.md")
    parser.add_argument("--pools", type=Path, default=ROOT)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    embed = Embedder(options.pools / "embeddings.npz")
    for task in TASKS:
        crossed = None
        for name in (
            f"{task}-raw-0",
            *sorted(f.name for f in options.pools.glob(f"{task}-*") if f.name != f"{task}-raw-0"),
        ):
            if any((options.pools / name).glob("shard-*.parquet")):
                table = read_pool(options.pools / name)
                numbers, crossed = numbers_of(task, table, options.data, embed, crossed)
                numbers.save(DATA / f"{name}.npz")
                logger.info("%s: %d prompts, %d answers", name, len(numbers.prompts), len(numbers.gold))


if __name__ == "__main__":
    main()
