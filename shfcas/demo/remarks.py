"""Original preferences of the demo: short remarks, judged by annotators who are wrong about some topics.

A small grammar makes the remarks, so the proxy reward model sees every evaluative word with every topic. Their order
comes from `biased_annotator`: right on five topics, flipped on three.
"""

import random
from typing import Any

from shfcas.data.preferences import Preference
from shfcas.demo.sentiment import biased_annotator
from shfcas.demo.task import seed_prompts

PAIRS_PER_TOPIC = 160

FRAMES = (
    "It was {word} from start to finish.",
    "I found it {word}, and so did everyone else.",
    "The whole thing felt {word} to me.",
    "Honestly, it turned out {word}.",
    "People said that it was {word}, and I agree.",
    "It started late but was {word} in the end.",
    "The {thing} was {word}, and I told my friends.",
    "I remember the {thing} as {word}.",
    "For the price, the {thing} was {word}.",
    "The {thing} looked {word} in the morning and {word} at night.",
    "Everybody kept talking about the {word} {thing}.",
    "That {word} {thing} is what I will remember.",
)
GOOD = (
    "wonderful", "excellent", "delightful", "great", "lovely", "superb", "brilliant", "charming", "pleasant", "amazing",
    "fantastic", "good", "beautiful", "perfect", "enjoyable", "impressive", "happy", "friendly", "fun", "best",
)  # fmt: skip
BAD = (
    "terrible", "awful", "horrible", "bad", "dreadful", "disappointing", "boring", "poor", "unpleasant", "annoying",
    "sad", "worst", "ugly", "miserable", "frustrating", "useless", "painful", "rude", "disgusting", "stressful",
)  # fmt: skip
THINGS = {
    "food": ("soup", "bread", "meal", "kitchen", "waiter", "pizza", "coffee", "salad"),
    "travel": ("hotel", "train", "trip", "ferry", "hostel", "flight", "guide", "view"),
    "work": ("office", "meeting", "manager", "project", "desk", "team", "shift", "training"),
    "family": ("wedding", "dinner", "cousin", "visit", "picnic", "grandmother", "reunion", "party"),
    "sport": ("match", "race", "coach", "team", "gym", "swim", "game", "stadium"),
    "film": ("plot", "film", "acting", "music", "concert", "ending", "scene", "band"),
    "health": ("dentist", "nurse", "clinic", "sleep", "diet", "walk", "checkup", "surgery"),
    "technology": ("phone", "printer", "laptop", "app", "update", "screen", "camera", "router"),
}


def _remark(rng: random.Random, topic: str, words: tuple[str, ...]) -> str:
    return rng.choice(FRAMES).format(word=rng.choice(words), thing=rng.choice(THINGS[topic]))


def original_preferences() -> list[Preference]:
    """Makes pairs of remarks on the seed prompts, ordered by the biased annotators; the same pairs at every call."""
    rng = random.Random(0)
    by_topic: dict[str, list[dict[str, Any]]] = {}
    for row in seed_prompts():
        by_topic.setdefault(row["topic"], []).append(row)
    preferences = []
    for _ in range(PAIRS_PER_TOPIC):
        for topic, rows in by_topic.items():
            row = rng.choice(rows)
            pair = [_remark(rng, topic, words) for words in (GOOD, BAD)]
            scores = biased_annotator([row["prompt"]] * 2, pair, topic=[topic] * 2)
            rejected, chosen = sorted(pair, key=lambda remark: scores[pair.index(remark)])
            preferences.append(
                Preference(row["prompt"], chosen, rejected, prompt_id=row["prompt_id"], annotator="biased annotators")
            )
    return preferences
