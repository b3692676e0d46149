"""The protocols of sampling: `Sampler` fills table rows, `Generator` continues token ids.

Log-probabilities always come from transformers: `sampling.local` samples and scores in one pass, `sampling.rescored`
scores what a generator sampled.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Request:
    """Answers to draw for one prompt.

    Attributes:
        prompt: its token ids, as the policy's own tokenizer and template give them.
        text: the rendered prompt, for servers that take no ids; with `special`, the tokenizer adds its own tokens.
        special: see there.
        seed: of the first answer.
        count: how many answers.
    """

    prompt: list[int]
    text: str
    special: bool
    seed: int
    count: int = 1


@dataclass(frozen=True)
class Answer:
    """One drawn answer.

    Attributes:
        finished: whether an end token closed it.
        tokens: as they were drawn, with the end token; None where the generator does not say.
        text: what the generator makes of them, used where there are no tokens.
        end: the token that closed it, where it is known and there are no tokens.
        logprobs: the generator's own, one a token; None where it does not say.
    """

    finished: bool
    tokens: list[int] | None
    text: str = ""
    end: int | None = None
    logprobs: list[float] | None = None


class Generator(Protocol):
    """Anything that continues token ids."""

    def __call__(self, requests: Sequence[Request]) -> Iterator[list[Answer]]:
        """Yields the answers to each request, in the given order."""

    def close(self) -> None:
        """Gives back what it holds, such as a GPU's memory."""


def label(identity: dict[str, Any] | None) -> str:
    """A generator's name and version, as a table's metadata record them; tables of old say nothing."""
    known = identity or {"name": "transformers"}
    return " ".join(str(value) for value in known.values() if value)


class Sampler(Protocol):
    """Anything that turns prompts into rows of a candidate table."""

    def __call__(self, prompts: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yields one candidate row a prompt, in the given order."""
