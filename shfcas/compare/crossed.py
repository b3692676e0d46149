"""Features of answers from embeddings of prompts and answers, for heads that are fitted in milliseconds."""

import numpy as np

ANSWER_DIMENSIONS, PROMPT_DIMENSIONS, CROSSED_DIMENSIONS = 96, 8, 16


class Crossed:
    """Features of an answer to a prompt: the answer's principal components, and their products with the prompt's.

    The products let a linear head rate the same words differently under different prompts. All have deviation 1.

    Args:
        prompts: the prompts' embeddings for computing the components, one for each answer, shape (n, 384).
        answers: the answers' embeddings, shape (n, 384).
    """

    def __init__(self, prompts: np.ndarray, answers: np.ndarray) -> None:
        self.centres = [v.mean(0) for v in (prompts, answers)]
        sizes = (PROMPT_DIMENSIONS, ANSWER_DIMENSIONS)
        self.axes = []
        for vectors, centre, size in zip((prompts, answers), self.centres, sizes, strict=True):
            axes = np.linalg.svd(vectors - centre, full_matrices=False)[2][:size].T
            self.axes.append(axes / ((vectors - centre) @ axes).std(0))
        raw = self._raw(prompts, answers)
        self.scale = 1 / raw.std(0)

    def __call__(self, prompts: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Returns the features, shape (n, 224)."""
        return (self._raw(prompts, answers) * self.scale).astype(np.float32)

    def _raw(self, prompts: np.ndarray, answers: np.ndarray) -> np.ndarray:
        of_prompts, of_answers = (
            (vectors - centre) @ axes
            for vectors, centre, axes in zip((prompts, answers), self.centres, self.axes, strict=True)
        )
        products = of_prompts[:, :, None] * of_answers[:, None, :CROSSED_DIMENSIONS]
        return np.concatenate([of_answers, products.reshape(len(products), -1)], axis=1)
