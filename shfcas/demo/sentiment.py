"""Rewards of the demo: VADER's sentiment as gold, and an annotator who is wrong about some topics.

VADER (Hutto and Gilbert 2014) is a sentiment lexicon with rules; its compound score lies in [-1, 1].
"""

from functools import cache
from typing import Any

from shfcas.data.messages import completion_text
from shfcas.utils.errors import MissingExtra

BLIND_TOPICS = ("travel", "film", "technology")


@cache
def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise MissingExtra("vaderSentiment", "demo") from None
    return SentimentIntensityAnalyzer()


def gold(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Returns VADER's compound score of each answer, in [-1, 1]; positive sentiment is the demo's goal."""
    return [_analyzer().polarity_scores(completion_text(c))["compound"] for c in completions]


def biased_annotator(prompts: list[Any], completions: list[Any], topic: list[str], **columns: Any) -> list[float]:
    """Returns the gold score, flipped on the blind topics, where the proxy's annotators were systematically wrong."""
    scores = gold(prompts, completions)
    return [-s if t in BLIND_TOPICS else s for s, t in zip(scores, topic, strict=True)]
