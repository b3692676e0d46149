"""Linear heads on frozen features, fitted to pairs in milliseconds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import softplus

from shfcas.utils.errors import UserError

SMALL = 1e-8  # standard deviation below which a feature says nothing


@dataclass(frozen=True)
class Head:
    """A reward that is linear in features: `features @ weight`, less a constant that no pair of answers sees.

    Attributes:
        weight: shape (D,), float64.
    """

    weight: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Rewards, shape (T,), of features, shape (T, D)."""
        return features.astype(np.float64) @ self.weight


class HeadFit:
    """Bradley-Terry heads on the same features and earlier pairs, with ever other new pairs.

    Minimises, over the weights w of features x that are scaled to unit deviation,

        sum_i a_i log(1 + exp(m_i - (x_chosen - x_rejected) w)) + l2 / 2 |w - c|^2

    with the pairs' weights a_i and margins m_i, and the weights c of the head to start from. The optimum is unique, so
    neither the order of pairs nor a seed matters. The earlier pairs' curvature is factorised once and shapes the
    search, which leaves some ten to fifty passes over the pairs for each fit.

    Args:
        features: by which features are scaled, shape (T, D), such as the pool's.
        differences: of the earlier pairs, features of the chosen answer less those of the rejected, shape (n, D).
        centre: the weights of the head to start from, shape (D,); None: zeros.
        l2: how strongly the weights are held there.
        margins: of the earlier pairs, shape (n,); None: zeros.
    """

    def __init__(
        self,
        features: np.ndarray,
        differences: np.ndarray,
        *,
        centre: np.ndarray | None = None,
        l2: float = 10.0,
        margins: np.ndarray | None = None,
    ) -> None:
        if not l2 > 0:
            raise UserError(f"l2: expected a number above 0, got {l2}")
        scale = features.std(axis=0, dtype=np.float64)
        self.scale = torch.from_numpy(np.where(scale > SMALL, 1 / np.maximum(scale, SMALL), 0.0))
        self.l2, size = l2, len(scale)
        old = torch.from_numpy(np.array(differences, np.float64).reshape(-1, size)) * self.scale
        start = np.zeros(size) if centre is None else np.asarray(centre, np.float64) * scale
        self.centre = torch.from_numpy(start)
        self.margins = torch.zeros(len(old), dtype=torch.float64)
        if margins is not None:
            self.margins = torch.from_numpy(np.asarray(margins, np.float64))
        with threads_of_torch(1):
            self.start = self.centre
            for _ in range(2):  # the curvature at the centre finds the optimum, where it is taken again
                self._factorise(old)
                self.start = self._solve(self.old, self.margins, torch.ones(len(old), dtype=torch.float64))
            self._factorise(old)

    def __call__(self, differences: np.ndarray, weight: float = 1.0) -> Head:
        """The head for the earlier pairs and these.

        Args:
            differences: of the new pairs, shape (m, D).
            weight: of each new pair, where an earlier one has 1.
        """
        with threads_of_torch(1):
            new = torch.from_numpy(np.array(differences, np.float64).reshape(-1, len(self.scale))) * self.scale
            weights = torch.ones(len(self.old) + len(new), dtype=torch.float64)
            weights[len(self.old) :] = weight
            margins = torch.cat([self.margins, torch.zeros(len(new), dtype=torch.float64)])
            solution = self._solve(torch.cat([self.old, self._whitened(new)]), margins, weights)
            return Head((solution * self.scale).numpy())

    def _factorise(self, old: torch.Tensor) -> None:
        """The Cholesky factor L of the curvature at `start`, and the earlier pairs in coordinates L^T w."""
        share = torch.sigmoid(self.margins - old @ self.start)
        curvature = (old * (share * (1 - share)).unsqueeze(1)).T @ old
        curvature.diagonal().add_(self.l2)
        self.factor = torch.linalg.cholesky(curvature)
        self.old = self._whitened(old)

    def _whitened(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve_triangular(self.factor, rows.T, upper=False).T.contiguous()

    def _solve(self, pairs: torch.Tensor, margins: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The optimum, in scaled features, for pairs in coordinates L^T w."""
        from scipy.optimize import minimize

        upper = self.factor.T

        def loss(coordinates: np.ndarray) -> tuple[float, np.ndarray]:
            at = torch.from_numpy(coordinates)
            w = torch.linalg.solve_triangular(upper, at.unsqueeze(1), upper=True).squeeze(1)
            lack = margins - pairs.mv(at)
            away = w - self.centre
            pull = torch.linalg.solve_triangular(self.factor, away.unsqueeze(1), upper=False).squeeze(1)
            value = weights.dot(softplus(lack)) + 0.5 * self.l2 * away.dot(away)
            slope = self.l2 * pull - pairs.T.mv(weights * torch.sigmoid(lack))
            return float(value), slope.numpy()

        begin = upper.mv(self.start).numpy()
        found = minimize(
            loss, begin, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-12, "gtol": 1e-6}
        )
        return torch.linalg.solve_triangular(upper, torch.from_numpy(found.x).unsqueeze(1), upper=True).squeeze(1)


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """So many threads for a while: with another number, sums are taken in another order and round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
