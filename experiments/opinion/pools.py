"""Sample answers of the raw policy and ask it for its contrasts: `python -m experiments.opinion.pools --data DATA`.

One file per eight prompts, in `runs/experiments/opinion/`; after a kill, the same command continues. `--draw 1` makes
the answers of the replication.
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.generate import sample
from experiments.opinion.tasks import NEW_TOKENS, SAMPLED, TASKS, WORDINGS, proxy_rows_of, rows_of
from experiments.pools import POLICY, SHARD
from shfcas.data.candidates import CandidateTable, concatenate, read_candidates, write_candidates
from shfcas.data.chat import encode_prompt, end_token_ids
from shfcas.models.loading import load_policy
from shfcas.sampling.contrast import completion_ids, completion_logprobs, contrasts

logger = logging.getLogger(__name__)

TEMPERATURES = (0.7,) * 4 + (1.1,) * 4
PROXY_ANSWERS = {"sentiment": 32, "safety": 16}  # per prompt, half at each temperature
ROOT = Path("runs/experiments/opinion")


def pool_folder(root: Path, task: str, policy: str, draw: int) -> Path:
    """Return the folder of a pool."""
    return root / f"{task}-{policy}-{draw}"


def shards(
    folder: Path, rows: Sequence[dict[str, Any]], policy: str, make: Callable[..., list[dict[str, Any]]]
) -> None:
    """Make file after file of a pool that is missing.

    Args:
        folder: where to.
        rows: the prompts.
        policy: the policy to load if a file is missing.
        make: completes some rows, from the policy, its tokenizer and the rows.
    """
    model: Any = None
    for start in range(0, len(rows), SHARD):
        path = folder / f"shard-{start // SHARD:03d}.parquet"
        if path.exists():
            continue
        if model is None:
            model, tokenizer = load_policy(policy)
        part = make(model, tokenizer, rows[start : start + SHARD])
        write_candidates(path, CandidateTable.from_rows([{k: v for k, v in r.items() if k != "tokens"} for r in part]))
        logger.info("%s: %d of %d prompts", folder.name, start + len(part), len(rows))


def asked_about(
    model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], task: str, draw: int
) -> list[dict[str, Any]]:
    """Return the rows with answers, their log-probabilities and their contrasts in every wording."""
    part = list(rows)
    if task in SAMPLED:
        part = sample(model, tokenizer, part, TEMPERATURES, NEW_TOKENS[task], draw)
    else:
        part = with_logprobs(model, tokenizer, part)
    names = {p.column: f"contrast_{i}" for i, p in enumerate(WORDINGS[task])}
    found = contrasts(model, tokenizer, part, principles=WORDINGS[task])
    return [
        {**row, **{names[name]: values for name, values in columns.items()}}
        for row, columns in zip(part, found, strict=True)
    ]


def learned_from(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], task: str) -> list[dict[str, Any]]:
    """Return the rows with answers that the proxy learns from; nobody asks the policy about them."""
    half = PROXY_ANSWERS[task] // 2
    return sample(model, tokenizer, rows, (0.7,) * half + (1.1,) * half, NEW_TOKENS[task], 0)


def with_logprobs(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with the log-probability of each text under the policy."""
    ends, found = end_token_ids(model, tokenizer), []
    for row in rows:
        pairs = zip(row["completions"], row["finished"], strict=True)
        ids = [completion_ids(tokenizer, text, ends, done) for text, done in pairs]
        sums = completion_logprobs(model, [encode_prompt(tokenizer, row["prompt"])], [ids])[0]
        found.append({**row, "logprobs": sums.tolist(), "num_tokens": [len(one) for one in ids]})
    return found


def read_pool(folder: Path) -> CandidateTable:
    """Read all files of a pool."""
    return concatenate(read_candidates(path) for path in sorted(folder.glob("shard-*.parquet")))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets, see experiments/README.md")
    parser.add_argument("--output", type=Path, default=ROOT)
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--draw", type=int, default=0, help="number of the draw; 0 is the first")
    parser.add_argument("--proxy", action="store_true", help="only the answers that proxies learn from")
    parser.add_argument("--policy", default="raw", help="raw, or the folder of a fine-tuned policy")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    name, policy = ("raw", POLICY) if options.policy == "raw" else ("sft", options.policy)
    for task in options.tasks:
        folder = pool_folder(options.output, task, "proxy" if options.proxy else name, options.draw)
        folder.mkdir(parents=True, exist_ok=True)
        if not options.proxy:
            rows = rows_of(task, options.data)
            shards(folder, rows, policy, partial(asked_about, task=task, draw=options.draw))
        elif task in SAMPLED:
            shards(folder, proxy_rows_of(task, options.data), policy, partial(learned_from, task=task))


if __name__ == "__main__":
    main()
