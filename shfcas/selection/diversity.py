"""Diversity of comparisons: greedy k-centre among the top comparisons.

The first centre is the comparison with the highest priority. Each further centre is the comparison farthest from all
earlier ones (Gonzalez 1985; for active learning Sener and Savarese 2018, arXiv 1708.00489). The covering radius is at
most twice the optimum.
"""

import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from shfcas.data.messages import plain_text
from shfcas.selection.protocol import Comparison, Row
from shfcas.utils.errors import UserError

DIVERSITIES = ("none", "k_centre")
COLUMNS = ("embeddings", "prompt")  # sources of embeddings; the first existing column is used
WORD_BINS = 256


def embedding_source(row: Row, comparison: Comparison) -> Any:
    """Returns the embeddings of the prompt or of both answers; without embeddings, the prompt."""
    embeddings = row.get("embeddings")
    if embeddings is None:
        if row.get("prompt") is None:
            raise UserError("diversity k_centre: expected a column embeddings or prompt, got neither")
        return row["prompt"]
    if embeddings and isinstance(embeddings[0], list):
        return [embeddings[comparison.first], embeddings[comparison.second]]
    return embeddings


def hash_words(text: str) -> np.ndarray:
    """Hashes a bag of words into 256 signed bins (Weinberger et al. 2009, arXiv 0902.2206), float32."""
    bins = np.zeros(WORD_BINS, np.float32)
    for word in re.findall(r"\w+", text.lower()):
        number = zlib.crc32(word.encode())
        bins[number % WORD_BINS] += 1 if number >> 31 else -1
    return bins


def embed(sources: Sequence[Any]) -> np.ndarray:
    """Returns one float32 unit vector per comparison, or 0 for an empty source.

    The vector of a comparison with embeddings of its answers is their mean direction.

    Raises:
        UserError: embeddings have different lengths, or contain values that are not numbers.
    """
    vectors = []
    for given in sources:
        if isinstance(given, str) or (given and isinstance(given[0], dict)):
            vectors.append(hash_words(plain_text(given)))
        else:
            try:
                rows = np.atleast_2d(np.array(given, np.float32))
            except ValueError:
                raise UserError(
                    "column embeddings: expected lists of equal length, got different ones in a row"
                ) from None
            vectors.append(_unit(rows).mean(axis=0))
    lengths = sorted({len(vector) for vector in vectors})
    if len(lengths) > 1:
        raise UserError(f"column embeddings: expected one length per table, got {', '.join(map(str, lengths))}")
    found = np.stack(vectors)
    if not np.isfinite(found).all():
        raise UserError("column embeddings: a value is not a number")
    return _unit(found)


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0, 1, norms)


def k_centre(vectors: np.ndarray, count: int) -> list[int]:
    """Returns the positions of the centres, in order of selection; of equally distant ones, the first.

    Args:
        vectors: (P, D), in order of priority.
        count: number of centres, at most P. Time is O(count P D).

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
        nearest = np.minimum(nearest, np.maximum(distances.round(5), 0))  # rounded: duplicates have distance 0
        nearest[centre] = -1  # never select it again
        centre = int(nearest.argmax())
    return chosen
