"""Linear heads on frozen features, fitted to pairs in milliseconds."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import softplus

from shfcas.utils.errors import UserError

SMALL = 1e-8  # features with a smaller standard deviation are ignored


@dataclass(frozen=True)
class Head:
    """Linear reward head: `features @ weight`, up to a constant that cancels in every pair of answers.

    Attributes:
        weight: shape (D,), float64.
    """

    weight: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Returns the rewards, shape (T,), of features, shape (T, D)."""
        return features.astype(np.float64) @ self.weight


class HeadFit:
    """Fit of Bradley-Terry heads to fixed features and earlier pairs, for changing sets of new pairs.

    Minimises, over the weights w of features x that are scaled to unit deviation,

        sum_i a_i (log(1 + exp(m_i - d_i)) + (1 - p_i) (d_i - m_i)) + l2 / 2 |w - c|^2,  d = (x_chosen - x_rejected) w

    with the pairs' weights a_i, margins m_i and probabilities p_i, and the weights c of the starting head. A verdict
    has p = 1, which leaves the loss of Bradley-Terry; a soft label has the cross-entropy. The optimum is unique, so
    neither the order of pairs nor a seed matters. The curvature of the earlier pairs is factorised once and
    preconditions the search, so that each fit needs about ten to fifty passes over the pairs.

    Args:
        features: features that determine the scaling, shape (T, D), such as those of the pool.
        differences: feature differences of the earlier pairs, chosen minus rejected, shape (n, D).
        centre: the weights of the starting head, shape (D,); None: zeros.
        l2: strength of the regularisation towards these weights.
        margins: margins of the earlier pairs, shape (n,); None: zeros.
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
        self._scaled = old
        with torch_threads(1):
            self.start = self.centre
            for _ in range(2):  # the curvature at the centre gives the optimum, then recompute it there
                self._factorise(old)
                ones = torch.ones(len(old), dtype=torch.float64)
                self.start = self._solve(self.old, self.margins, ones, torch.zeros_like(ones))
            self._factorise(old)

    def joined(self, differences: np.ndarray) -> "HeadFit":
        """Returns a fit whose earlier pairs also contain these; faster where many fits share them.

        Args:
            differences: feature differences of the further pairs, shape (k, D); their margins are 0.
        """
        made = copy(self)
        more = torch.from_numpy(np.array(differences, np.float64).reshape(-1, len(self.scale))) * self.scale
        made._scaled = torch.cat([self._scaled, more])
        made.margins = torch.cat([self.margins, torch.zeros(len(more), dtype=torch.float64)])
        with torch_threads(1):
            made._factorise(made._scaled)
        return made

    def __call__(
        self,
        differences: np.ndarray,
        weight: float | np.ndarray = 1.0,
        *,
        earlier: float | np.ndarray = 1.0,
        probability: np.ndarray | None = None,
    ) -> Head:
        """Fits a head to the earlier and the new pairs.

        Args:
            differences: feature differences of the new pairs, shape (m, D).
            weight: weight of each new pair, a number or shape (m,).
            earlier: weight of each earlier pair, a number or shape (n,).
            probability: of each earlier pair, that its order is right, shape (n,); None: 1.
        """
        with torch_threads(1):
            new = torch.from_numpy(np.array(differences, np.float64).reshape(-1, len(self.scale))) * self.scale
            old = len(self.old)
            weights, doubt = torch.zeros((2, old + len(new)), dtype=torch.float64)
            weights[:old] = torch.as_tensor(earlier, dtype=torch.float64)
            weights[old:] = torch.as_tensor(weight, dtype=torch.float64)
            if probability is not None:
                doubt[:old] = 1 - torch.as_tensor(probability, dtype=torch.float64)
            margins = torch.cat([self.margins, torch.zeros(len(new), dtype=torch.float64)])
            pairs = torch.cat([self.old, self._whitened(new)])
            return Head((self._solve(pairs, margins, weights, doubt) * self.scale).numpy())

    def _factorise(self, old: torch.Tensor) -> None:
        """Computes the Cholesky factor L of the curvature at `start`, and the earlier pairs in coordinates L^T w."""
        share = torch.sigmoid(self.margins - old @ self.start)
        curvature = (old * (share * (1 - share)).unsqueeze(1)).T @ old
        curvature.diagonal().add_(self.l2)
        self.factor = torch.linalg.cholesky(curvature)
        self.old = self._whitened(old)

    def _whitened(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve_triangular(self.factor, rows.T, upper=False).T.contiguous()

    def _solve(
        self, pairs: torch.Tensor, margins: torch.Tensor, weights: torch.Tensor, doubt: torch.Tensor
    ) -> torch.Tensor:
        """Returns the optimum, in scaled features, for pairs in coordinates L^T w; `doubt` is 1 - p of each pair."""
        from scipy.optimize import minimize

        upper = self.factor.T

        def loss(coordinates: np.ndarray) -> tuple[float, np.ndarray]:
            at = torch.from_numpy(coordinates)
            w = torch.linalg.solve_triangular(upper, at.unsqueeze(1), upper=True).squeeze(1)
            lack = margins - pairs.mv(at)
            away = w - self.centre
            pull = torch.linalg.solve_triangular(self.factor, away.unsqueeze(1), upper=False).squeeze(1)
            value = weights.dot(softplus(lack) - doubt * lack) + 0.5 * self.l2 * away.dot(away)
            slope = self.l2 * pull - pairs.T.mv(weights * (torch.sigmoid(lack) - doubt))
            return float(value), slope.numpy()

        begin = upper.mv(self.start).numpy()
        found = minimize(
            loss, begin, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-12, "gtol": 1e-6}
        )
        return torch.linalg.solve_triangular(upper, torch.from_numpy(found.x).unsqueeze(1), upper=True).squeeze(1)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Sets the number of torch threads; with another number, sums have another order and round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
