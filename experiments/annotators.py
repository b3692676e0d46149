"""Simulated annotators: programs in place of people, and biases for the annotators of a proxy.

None of this is a person. VADER (sentiment) is a lexicon with rules. `SafetyAnnotator` is a classifier trained on
people's labels of other exchanges. The votes in PandaLM are people's, and need nothing from here.
"""

from collections.abc import Sequence

import numpy as np

from experiments.loaders import Exchange
from shfcas.utils.seeds import derive_seed

BIASES = ("none", "inverted", "missing", "noise", "length", "length_noise")


class SafetyAnnotator:
    """Log-odds that an answer is safe, learned from all categories of DiaSafety.

    It reads more than a proxy's head does: words and pairs of words of context and answer, the embeddings of both, and
    the product of the embeddings.

    Args:
        exchanges: labelled exchanges.
        contexts: their contexts' embeddings, shape (n, D).
        responses: their responses' embeddings, shape (n, D).
    """

    def __init__(self, exchanges: Sequence[Exchange], contexts: np.ndarray, responses: np.ndarray) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        options = {"ngram_range": (1, 2), "min_df": 3, "sublinear_tf": True, "max_features": 20_000}
        self.words = [TfidfVectorizer(**options) for _ in range(2)]
        for vectorizer, name in zip(self.words, ("context", "response"), strict=True):
            vectorizer.fit([getattr(e, name) for e in exchanges])
        texts = [[getattr(e, name) for e in exchanges] for name in ("context", "response")]
        self.model = LogisticRegression(C=1.0, max_iter=1000)
        self.model.fit(self._features(*texts, contexts, responses), [e.safe for e in exchanges])

    def __call__(
        self, contexts: Sequence[str], responses: Sequence[str], context_vectors: np.ndarray, vectors: np.ndarray
    ) -> np.ndarray:
        """Return the log-odds that each answer is safe, shape (n,)."""
        return self.model.decision_function(self._features(contexts, responses, context_vectors, vectors))

    def _features(
        self, contexts: Sequence[str], responses: Sequence[str], context_vectors: np.ndarray, vectors: np.ndarray
    ) -> object:
        from scipy.sparse import csr_matrix, hstack

        words = [v.transform(texts) for v, texts in zip(self.words, (contexts, responses), strict=True)]
        dense = np.concatenate([context_vectors, vectors, context_vectors * vectors * 20], axis=1)
        return hstack([*words, csr_matrix(dense)]).tocsr()


def flipped_labels(
    bias: str, strength: float, blind: np.ndarray, words: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Apply the bias of annotators to pairs whose better answer comes first.

    Args:
        bias: one of

            - `none`: no bias;
            - `inverted`: a share `strength` of the labels of the blind groups is flipped;
            - `missing`: a share `strength` of the blind groups' pairs is left out;
            - `noise`: a share `strength` of all labels is flipped;
            - `length`: a share `strength` of the labels goes to the longer answer, whichever is better;
            - `length_noise`: as `length`, and 15 % of the labels are flipped besides.
        strength: the share that is affected.
        blind: whether each pair is about a blind group, shape (n,).
        words: words of the better answer minus words of the worse one, shape (n,).
        seed: seed of the random draws.

    Returns:
        Masks of the pairs that are kept, and of the labels that are flipped, each of shape (n,).
    """
    chance = np.random.default_rng(derive_seed("bias", seed)).random((2, len(blind)))
    keep, turn = np.ones(len(blind), bool), np.zeros(len(blind), bool)
    struck = chance[0] < strength
    if bias == "inverted":
        turn = blind & struck
    elif bias == "missing":
        keep = ~(blind & struck)
    elif bias == "noise":
        turn = struck
    elif bias in ("length", "length_noise"):
        turn = struck & (words < 0)
        if bias == "length_noise":
            turn ^= chance[1] < 0.15
    elif bias != "none":
        raise ValueError(f"unknown bias {bias!r}, one of {', '.join(BIASES)}")
    return keep, turn
