"""Comparisons that are not all about the same thing: greedy k-centre among the most wanted ones.

Whatever else is near a comparison that was chosen already can wait. The first centre is the most wanted comparison, and
each further one is that which lies farthest from all before it (Gonzalez 1985; Sener and Savarese 2018, arXiv
1708.00489, for what to label). The centres cover the pool at most twice as badly as the best ones could.
"""

import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from shfcas.data.chat import plain_text
from shfcas.selection.protocol import Comparison, Row
from shfcas.utils.errors import UserError

DIVERSITIES = ("none", "k_centre")
COLUMNS = ("embeddings", "prompt")  # the first that there is says where a comparison lies
WORD_BINS = 256


def source(row: Row, comparison: Comparison) -> Any:
    """What a comparison's place is made of: embeddings of the prompt or of both answers, or else the prompt."""
    embeddings = row.get("embeddings")
    if embeddings is None:
        if row.get("prompt") is None:
            raise UserError("diversity k_centre: the table has neither column embeddings nor prompt")
        return row["prompt"]
    if embeddings and isinstance(embeddings[0], list):
        return [embeddings[comparison.first], embeddings[comparison.second]]
    return embeddings


def words(text: str) -> np.ndarray:
    """A bag of words, hashed into 256 signed bins (Weinberger et al. 2009, arXiv 0902.2206), float32."""
    bins = np.zeros(WORD_BINS, np.float32)
    for word in re.findall(r"\w+", text.lower()):
        number = zlib.crc32(word.encode())
        bins[number % WORD_BINS] += 1 if number >> 31 else -1
    return bins


def places(sources: Sequence[Any]) -> np.ndarray:
    """Where comparisons lie, one row each, float32: vectors of length 1, or 0 where there is nothing to go by.

    The place of a comparison with embeddings of its answers is their mean direction.

    Raises:
        UserError: embeddings of different lengths, or that are not numbers.
    """
    vectors = []
    for given in sources:
        if isinstance(given, str) or (given and isinstance(given[0], dict)):
            vectors.append(words(plain_text(given)))
        else:
            try:
                rows = np.atleast_2d(np.array(given, np.float32))
            except ValueError:
                raise UserError("column embeddings: lists of different lengths in one row") from None
            vectors.append(_unit(rows).mean(axis=0))
    lengths = sorted({len(vector) for vector in vectors})
    if len(lengths) > 1:
        raise UserError(f"column embeddings: lengths {', '.join(map(str, lengths))} in one table; expected one")
    found = np.stack(vectors)
    if not np.isfinite(found).all():
        raise UserError("column embeddings: a value is not a number")
    return _unit(found)


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0, 1, norms)


def k_centre(vectors: np.ndarray, count: int) -> list[int]:
    """Positions of the centres, in the order in which they were chosen; of equally far ones the first.

    Args:
        vectors: (P, D), the most wanted first.
        count: how many; all P if it is larger. Time is O(count P D).

    >>> k_centre(np.array([[0.0], [1.0], [10.0], [11.0]]), 3)
    [0, 3, 1]
    """
    squares = (vectors * vectors).sum(axis=1)
    nearest = np.full(len(vectors), np.inf)
    chosen: list[int] = []
    centre = 0
    while len(chosen) < min(count, len(vectors)):
        chosen.append(centre)
        distances = squares + squares[centre] - 2 * (vectors @ vectors[centre])
        nearest = np.minimum(nearest, np.maximum(distances.round(5), 0))  # rounding must not part twins
        nearest[centre] = -1  # chosen, and never again
        centre = int(nearest.argmax())
    return chosen
