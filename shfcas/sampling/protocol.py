"""Protocols of sampling: a `Sampler` fills table rows, a `Generator` continues token ids.

Log-probabilities always come from transformers. `sampling.local` samples and scores in one pass; `sampling.rescored`
scores the answers of a generator.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Request:
    """Request for sampled answers to one prompt.

    Attributes:
        prompt: token ids of the prompt, from the policy's own tokenizer and template.
        text: the rendered prompt, for servers that take no ids.
        special: whether a tokenizer must add its special tokens to `text`.
        seed: seed of the first answer.
        count: number of answers.
    """

    prompt: list[int]
    text: str
    special: bool
    seed: int
    count: int = 1


@dataclass(frozen=True)
class Answer:
    """One sampled answer.

    Attributes:
        finished: whether the answer ended with an end token.
        tokens: the sampled tokens, including the end token; None if the generator does not return them.
        text: text from the generator, used if there are no tokens.
        end: the end token, if it is known and there are no tokens.
        logprobs: the generator's log-probabilities, one per token; None if it does not return them.
    """

    finished: bool
    tokens: list[int] | None
    text: str = ""
    end: int | None = None
    logprobs: list[float] | None = None


class Generator(Protocol):
    """Protocol of generators, which continue token ids."""

    def __call__(self, requests: Sequence[Request]) -> Iterator[list[Answer]]:
        """Yields the answers to each request, in the given order."""

    def close(self) -> None:
        """Releases resources, such as a GPU's memory."""


def generator_label(identity: dict[str, Any] | None) -> str:
    """Returns a generator's name and version from a table's metadata; None (older tables) is transformers."""
    known = identity or {"name": "transformers"}
    return " ".join(str(value) for value in known.values() if value)


class Sampler(Protocol):
    """Protocol of samplers, which turn prompts into rows of a candidate table."""

    def __call__(self, prompts: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yields one candidate row per prompt, in the given order."""
