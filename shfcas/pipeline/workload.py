"""Work of stages in comparable amounts, from which a plan counts what is left, and estimates its time and price."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.data.candidates import read_prompts
from shfcas.feedback.judge.prompt import judge_messages
from shfcas.pipeline.config import RunConfig
from shfcas.utils.files import read_json, read_text

CHARACTERS = 4  # per token of a judge's prompt, roughly


@dataclass(frozen=True)
class Workload:
    """Amounts of work of the stages of a run.

    Attributes:
        config: the configuration of the run.
        prompts: number of prompts to sample, select and train on.
        eval_prompts: number of held-out prompts.
        unlabelled_prompts: number of prompts that are never asked about.
    """

    config: RunConfig
    prompts: int
    eval_prompts: int
    unlabelled_prompts: int = 0

    def of(self, name: str) -> tuple[str, float]:
        """Returns the kind of a stage and its amount of work; the time of stages of one kind grows with the amount.

        Sampling counts the most tokens that its answers may have, training of the policy its rollouts, scoring and
        labelling what they score and label. The amount of all other stages is 1.
        """
        config = self.config
        folder, _, output = name.rpartition("/")
        if output.endswith("candidates.parquet") or output == "bootstrap.parquet":
            return "sampling", self.tokens(name)
        if output in ("conflicts.parquet", "unlabelled.parquet", "evaluation.parquet"):
            return output, self.completions(name)
        if folder.endswith("round-0"):  # training before the first round is unlike that of a round
            return name, 1.0
        if output == "policy":
            return output, self.rollouts() or 1
        if output in ("preferences.jsonl", "win_rate.json"):
            source = config.feedback if output == "preferences.jsonl" else config.evaluation.judge
            return output, 0 if source == "human" else self.comparisons(name)  # people have no rate
        return output, 1.0

    def completions(self, name: str) -> int:
        """Answers of a stage that samples or scores them; 0 for any other."""
        config, (folder, _, output) = self.config, name.rpartition("/")
        if output in ("candidates.parquet", "conflicts.parquet"):
            return self.prompts * config.sampling.num_completions
        if output in ("unlabelled_candidates.parquet", "unlabelled.parquet"):
            return self.unlabelled_prompts * config.sampling.num_completions
        if output in ("evaluation_candidates.parquet", "evaluation.parquet"):
            best_of_n = config.rl.best_of_n.n if config.rl.algorithm == "best_of_n" else 1
            kept = self.eval_prompts * config.evaluation.sampling.num_completions
            return kept if folder.endswith("round-0") else kept * best_of_n
        if output == "bootstrap.parquet" and config.bootstrap:
            return len(read_prompts(config.bootstrap.prompts)) * config.bootstrap.sampling.num_completions
        return 0

    def tokens(self, name: str) -> int:
        """The most tokens that the answers of a stage may have; 0 unless it samples."""
        config, output = self.config, name.rpartition("/")[2]
        sampling = dict.fromkeys(("candidates.parquet", "unlabelled_candidates.parquet"), config.sampling)
        sampling["evaluation_candidates.parquet"] = config.evaluation.sampling
        if config.bootstrap:
            sampling["bootstrap.parquet"] = config.bootstrap.sampling
        return self.completions(name) * sampling[output].max_new_tokens if output in sampling else 0

    def rollouts(self) -> int:
        """Answers that the training of one policy samples."""
        settings = getattr(self.config.rl, self.config.rl.algorithm)
        return getattr(settings, "num_rollouts", 0) * getattr(settings, "rollout_batch_size", 0)

    def comparisons(self, name: str) -> int:
        """The most comparisons of a stage that labels or compares policies; 0 for any other."""
        config, (folder, _, output) = self.config, name.rpartition("/")
        if output == "preferences.jsonl" and not folder.endswith("round-0"):
            return config.selection.budget
        if output == "win_rate.json":
            pairs = self.eval_prompts * config.evaluation.sampling.num_completions
            return min(config.evaluation.num_comparisons, pairs)
        return 0


def judge_tokens(config: RunConfig, comparisons: int, prompts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Estimates what a language model reads and writes for comparisons, each asked in both orders.

    Args:
        config: the configuration of the run.
        comparisons: number of comparisons.
        prompts: rows with `prompt`, whose mean length counts.

    Returns:
        `input_tokens` and `output_tokens`, and whether they are `measured`: from the reports of this run if there are
        any, otherwise from the lengths of prompts and the longest answers and replies. `price`: None without prices.
    """
    reports = [report for report in _reports(Path(config.output)) if report["comparisons"]]
    judged = sum(report["comparisons"] for report in reports)
    if judged:
        per = [sum(report[key] for report in reports) / judged for key in ("input_tokens", "output_tokens")]
    else:
        per = [2 * _question_tokens(config, prompts), 2 * config.judge.max_tokens]
    sent, received = (round(comparisons * tokens) for tokens in per)
    prices = config.judge.price_per_million_input, config.judge.price_per_million_output
    price = None if None in prices else (sent * prices[0] + received * prices[1]) / 1e6
    return {"input_tokens": sent, "output_tokens": received, "measured": bool(judged), "price": price}


def _question_tokens(config: RunConfig, prompts: Sequence[dict[str, Any]]) -> float:
    """Tokens of a question about two answers of full length, from characters."""
    settings = config.judge
    guidelines = read_text(settings.guidelines) if settings.guidelines else ""
    lengths = [
        sum(
            len(message["content"])
            for message in judge_messages(row["prompt"], ("", ""), criterion=settings.criterion, guidelines=guidelines)
        )
        for row in prompts
    ]
    answers = max(config.sampling.max_new_tokens, config.evaluation.sampling.max_new_tokens)
    return sum(lengths) / len(lengths) / CHARACTERS + 2 * answers


def _reports(run: Path) -> Iterable[dict[str, Any]]:
    """The reports of a language model in a run directory."""
    for path in sorted(run.glob("**/judge.json")):
        yield read_json(path)
    for path in sorted(run.glob("**/win_rate.json")):
        found = read_json(path)
        if "report" in found:
            yield found["report"]
