"""A sequential test for growth, whose false-alarm rate holds over a whole run."""

import math
import random
from bisect import bisect_left, bisect_right, insort

POWERS = (0.1, 0.3, 0.5, 0.7, 0.9)


class GrowthTest:
    """Test martingale against the hypothesis that a series does not grow.

    The first values are the reference. Each later value has a conformal p-value: the share of all values so far that
    are at least as large, with ties broken at random. If the series is exchangeable, so that every order of its values
    is equally likely, these p-values are independent and uniform, whatever the distribution (Vovk, Nouretdinov and
    Gammerman 2003). The test bets on small ones with the functions e p^(e-1), averaged over e. A bet starts before
    value k with the weight 1 / (k (k + 1)), so that a late growth is found too. The capital is a martingale from 1. So
    it ever reaches 1 / a with a probability of at most a (Ville 1939).

    Args:
        reference: values before the first bet.
        seed: seed of the ties.

    Attributes:
        capital: evidence for growth; 1 is none.
        peak: the greatest capital so far.
    """

    def __init__(self, reference: int, seed: int = 0) -> None:
        self.reference, self.capital, self.peak = reference, 1.0, 1.0
        self._sorted: list[float] = []
        self._random = random.Random(seed)
        self._stakes = dict.fromkeys(POWERS, 0.0)
        self._bets = 0

    def add(self, value: float) -> float:
        """Adds a value and returns the capital.

        Args:
            value: the next value of the series, finite.
        """
        larger = len(self._sorted) - bisect_right(self._sorted, value)
        equal = len(self._sorted) - larger - bisect_left(self._sorted, value)
        p = (larger + self._random.random() * (equal + 1)) / (len(self._sorted) + 1)
        insort(self._sorted, value)
        if len(self._sorted) > self.reference:
            self._bet(max(p, 1e-12))
        return self.capital

    def _bet(self, p: float) -> None:
        self._bets += 1
        new = 1 / (self._bets * (self._bets + 1))
        for power, stake in self._stakes.items():
            self._stakes[power] = min((stake + new) * power * p ** (power - 1), 1e300)
        waiting = 1 / (self._bets + 1)  # of the bets that have not started
        self.capital = math.fsum(self._stakes.values()) / len(POWERS) + waiting
        self.peak = max(self.peak, self.capital)
