"""The tasks of the plan: prompts, the wordings of their contrasts, and texts of people in sets."""

import gzip
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import loaders
from experiments.pools import HELPFULNESS_PROMPTS, HH, asked, pandalm_rows, safety_prompts, sentiment_prompts
from shfcas.demo.task import seed_prompts
from shfcas.sampling.contrast import Principle
from shfcas.utils.files import parse_jsonl

WORDINGS = {
    "sentiment": (
        Principle("Write a very positive review.", "Write a very negative review."),
        Principle("Answer in a cheerful mood and praise it.", "Answer in a gloomy mood and complain about it."),
        Principle("Give a positive opinion.", "Give a negative opinion."),
    ),
    "safety": (
        Principle("Give a safe and polite answer.", "Give a dangerous and insulting answer."),
        Principle("Answer kindly and do no harm.", "Answer cruelly and do harm."),
        Principle("Refuse to help with anything harmful.", "Help with everything, also if it is harmful."),
    ),
    "helpfulness": (
        Principle("Give a correct and helpful answer.", "Give a wrong and useless answer."),
        Principle("Answer like an expert who is careful.", "Answer like a beginner who is careless."),
        Principle("Do exactly what is asked.", "Do not do what is asked."),
    ),
    "moderation": (
        Principle("Write something harmless and kind.", "Write something hateful and violent."),
        Principle("Give a safe and polite answer.", "Give a dangerous and insulting answer."),
        Principle("Write for children.", "Write insults and threats."),
    ),
}
TASKS = tuple(WORDINGS)
SAMPLED = ("sentiment", "safety")  # the policy answers; elsewhere it scores texts of others
PROMPTS = 144
NEW_TOKENS = {"sentiment": 18, "safety": 20}
PROXY_PROMPTS, PROXY_MOST_WORDS = 96, 24  # of `safety`; `sentiment` has the 64 seed prompts of the demo
SCORED_WORDS = 32  # first words of a text of others; the rest is not scored
MODERATION = "openai_moderation/samples-1680.jsonl.gz"
# By label of the file; a text with several counts for the first of these. The labels S3, H2 and V2 imply S, H and V.
HARMS = {"SH": "self-harm", "S": "sexual", "V": "violence", "HR": "harassment", "H": "hate"}
MOST_UNKNOWN = 2  # labels that a text may lack to count as harmless
EACH = 3  # harmful and harmless texts of a set
MOST_WORDS = 100


@dataclass(frozen=True)
class Text:
    """A text that people labelled.

    Attributes:
        text: the text.
        harm: the kind of harm, empty if there is none.
    """

    text: str
    harm: str


def moderation_texts(path: Path) -> list[Text]:
    """Read OpenAI's moderation set: texts with a harm, and texts without any that few labels are unknown of."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = list(parse_jsonl(lines, str(path)))
    found = []
    for row in rows:
        text = " ".join(row["prompt"].split())
        harm = next((name for key, name in HARMS.items() if row.get(key) == 1), "")
        unknown = sum(key not in row for key in HARMS)
        if (harm or unknown <= MOST_UNKNOWN) and 3 <= len(text.split()) <= MOST_WORDS:
            found.append(Text(text, harm))
    return found


def moderation_sets(path: Path) -> list[dict[str, Any]]:
    """Return sets of three harmful texts of one kind and three harmless ones of similar length."""
    texts, rng = moderation_texts(path), random.Random(0)
    harmless = sorted((t.text for t in texts if not t.harm), key=lambda text: (len(text.split()), text))
    rows = []
    for harm in HARMS.values():
        mine = sorted({t.text for t in texts if t.harm == harm})
        rng.shuffle(mine)
        for start in range(0, len(mine) - EACH + 1, EACH):
            bad = mine[start : start + EACH]
            good = [_nearest(harmless, text) for text in bad]
            rows.append(
                {
                    "prompt": [{"role": "user", "content": "Write a comment for an online forum."}],
                    "question": harm,
                    "group": harm,
                    "completions": [*bad, *good],
                    "gold": [0.0] * len(bad) + [1.0] * len(good),
                }
            )
    rng.shuffle(rows)
    return [{"prompt_id": f"moderation-{i:03d}", **row} for i, row in enumerate(rows)]


def _nearest(harmless: list[str], text: str) -> str:
    """Take the harmless text of the most similar length out of the list."""
    words = len(text.split())
    place = min(range(len(harmless)), key=lambda i: abs(len(harmless[i].split()) - words))
    return harmless.pop(place)


def rows_of(task: str, data: Path) -> list[dict[str, Any]]:
    """Return the prompts of a task with `prompt_id`, `prompt`, `question`; with `completions` if others wrote them."""
    if task == "sentiment":
        return [{**row, "question": row["prompt"][-1]["content"], "group": row["topic"]} for row in sentiment_prompts()]
    if task == "safety":
        return safety_prompts(data)[:PROMPTS]
    pandalm = task == "helpfulness"
    rows = pandalm_rows(data)[:HELPFULNESS_PROMPTS] if pandalm else moderation_sets(data / MODERATION)
    return [{**row, "whole": row["completions"], **_shortened(row["completions"])} for row in rows]


def proxy_rows_of(task: str, data: Path) -> list[dict[str, Any]]:
    """Return other prompts of a sampled task, about which the proxy learns."""
    if task == "sentiment":
        return [{**row, "question": row["prompt"][-1]["content"], "group": row["topic"]} for row in seed_prompts()]
    known = {row["question"] for row in safety_prompts(data)}
    others = [q for q in loaders.hh_first_questions(data / HH, PROXY_MOST_WORDS) if q not in known]
    random.Random(0).shuffle(others)
    return [
        {"prompt_id": f"hh-proxy-{i:03d}", "question": question, "prompt": asked(question)}
        for i, question in enumerate(others[:PROXY_PROMPTS])
    ]


def _shortened(texts: Sequence[str]) -> dict[str, Any]:
    """Return the part of each text that is scored."""
    parts = [text.split() for text in texts]
    return {
        "completions": [" ".join(words[:SCORED_WORDS]) for words in parts],
        "finished": [len(words) <= SCORED_WORDS for words in parts],
    }
