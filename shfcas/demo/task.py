"""Prompts of the demo: 208 short requests on 8 topics, split into three disjoint parts."""

import json
from functools import cache
from importlib import resources
from itertools import chain
from typing import Any

SYSTEM = "Topic: {topic}. One short sentence."
SEED_PER_TOPIC, HELD_OUT_PER_TOPIC = 8, 6


@cache
def _by_topic() -> dict[str, list[dict[str, Any]]]:
    topics: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(resources.files(__package__).joinpath("prompts.json").read_text(encoding="utf-8")):
        rows = topics.setdefault(row["topic"], [])
        rows.append(
            {
                "prompt_id": f"{row['topic']}-{len(rows):02d}",
                "topic": row["topic"],
                "prompt": [
                    {"role": "system", "content": SYSTEM.format(topic=row["topic"])},
                    {"role": "user", "content": row["prompt"]},
                ],
            }
        )
    return topics


def _part(start: int, stop: int | None) -> list[dict[str, Any]]:
    """Returns prompts of every topic in turn, so that any first n are balanced; each topic's forms alternate too."""
    parts = []
    for rows in _by_topic().values():
        half = len(rows) // 2  # the first half asks for reviews, the second half asks questions
        mixed = list(chain.from_iterable(zip(rows[:half], rows[half:], strict=True)))
        parts.append(mixed[start:stop])
    return list(chain.from_iterable(zip(*parts, strict=True)))


def seed_prompts() -> list[dict[str, Any]]:
    """Returns the prompts of the demonstrations and of the original preferences."""
    return _part(0, SEED_PER_TOPIC)


def train_prompts() -> list[dict[str, Any]]:
    """Returns the prompts for sampling, feedback and training."""
    return _part(SEED_PER_TOPIC, -HELD_OUT_PER_TOPIC)


def held_out_prompts() -> list[dict[str, Any]]:
    """Returns the prompts that only the evaluation uses."""
    return _part(-HELD_OUT_PER_TOPIC, None)
