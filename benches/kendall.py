"""Kendall's tau-b and PACS against what one would write without this package.

    python -m benches.kendall [--quick] [--threads T]

Rows per second, and how many times as many as the rival computes; float32. Every rival gives the same result
as the op, which is checked before the clock starts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy
import scipy.stats
import torch
from torch import Tensor

import shfcas
from benches.timing import print_json, print_table, seconds_per_call

ROWS = {8: 1 << 17, 16: 1 << 16, 64: 1 << 13, 1024: 64}
SCIPY_ROWS = 50
BROADCAST_VALUES = 1 << 22  # of the (B, N, N) array that numpy writes down


def naive_tau_b(x: Tensor, y: Tensor) -> Tensor:
    """The textbook formula over all pairs; compiled, it never writes the (B, N, N) array down."""
    dx = torch.sign(x[:, :, None] - x[:, None, :])
    dy = torch.sign(y[:, :, None] - y[:, None, :])
    untied = (dx * dx).sum((1, 2)) * (dy * dy).sum((1, 2))
    return (dx * dy).sum((1, 2)) / untied.sqrt()


def broadcast_tau_b(x: numpy.ndarray, y: numpy.ndarray) -> numpy.ndarray:
    """The same formula in numpy."""
    dx = numpy.sign(x[:, :, None] - x[:, None, :])
    dy = numpy.sign(y[:, :, None] - y[:, None, :])
    untied = (dx * dx).sum((1, 2)) * (dy * dy).sum((1, 2))
    return (dx * dy).sum((1, 2)) / numpy.sqrt(untied)


def scipy_tau_b(x: numpy.ndarray, y: numpy.ndarray) -> list[float]:
    """A loop over rows, as the scripts of the paper have it."""
    return [scipy.stats.kendalltau(a, b).statistic for a, b in zip(x, y, strict=True)]


def eager_pacs(rewards: Tensor, logprobs: Tensor) -> Tensor:
    """Z-scores in plain torch."""

    def z(v: Tensor) -> Tensor:
        std, mean = torch.std_mean(v, dim=-1, correction=0, keepdim=True)
        return torch.where(std < 1e-6, 0, (v - mean) / std)

    return z(rewards) - z(logprobs)


def eager_conflict_scores(rewards: Tensor, logprobs: Tensor) -> tuple[Tensor, ...]:
    """All five results in plain torch, the pairs compared once for distance and tau-b."""
    n = rewards.shape[-1]
    scores = eager_pacs(rewards, logprobs)
    dx = torch.sign(rewards[:, :, None] - rewards[:, None, :])
    dy = torch.sign(logprobs[:, :, None] - logprobs[:, None, :])
    product = dx * dy
    untied = (dx * dx).sum((1, 2)) * (dy * dy).sum((1, 2))
    degenerate = (rewards.std(-1, correction=0) < 1e-6) | (logprobs.std(-1, correction=0) < 1e-6)
    return (
        scores,
        scores.abs().mean(-1),
        (product < 0).sum((1, 2)) / (n * (n - 1)),
        product.sum((1, 2)) / untied.sqrt(),
        degenerate,
    )


def case(
    name: str,
    n: int,
    ties: bool,
    rows: int,
    rivals: dict[str, tuple[Callable, int]],
    own: Callable,
    budget: float,
) -> dict[str, object]:
    """Rows per second of the op, and the ratio to each rival, timed on the first of the rows."""
    speed = rows / seconds_per_call(own, budget)
    result: dict[str, object] = {"case": name, "N": n, "ties": "yes" if ties else "no", "rows/s": speed}
    for rival, (function, rival_rows) in rivals.items():
        result[f"x {rival}"] = speed / (rival_rows / seconds_per_call(function, budget))
    return result


def kendall_case(n: int, ties: bool, budget: float) -> dict[str, object]:
    """tau-b of ROWS[n] rows."""
    rows = ROWS[n]
    x, y = torch.randn(rows, n), torch.randn(rows, n)
    if ties:
        x, y = (x * 2).round(), (y * 2).round()
    compiled = torch.compile(naive_tau_b, dynamic=False)
    few = max(1, min(rows, BROADCAST_VALUES // n**2))
    numpy_x, numpy_y = x[:few].numpy(), y[:few].numpy()
    scipy_x, scipy_y = x[:SCIPY_ROWS].numpy(), y[:SCIPY_ROWS].numpy()

    own = shfcas.kendall_tau(x, y).float()
    torch.testing.assert_close(compiled(x, y), own, rtol=1e-4, atol=1e-5, equal_nan=True)
    expected = torch.tensor(scipy_tau_b(scipy_x, scipy_y))
    torch.testing.assert_close(own[:SCIPY_ROWS].double(), expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    rivals = {
        "torch.compile": (lambda: compiled(x, y), rows),
        "numpy": (lambda: broadcast_tau_b(numpy_x, numpy_y), few),
        "scipy": (lambda: scipy_tau_b(scipy_x, scipy_y), SCIPY_ROWS),
    }
    return case("kendall_tau", n, ties, rows, rivals, lambda: shfcas.kendall_tau(x, y), budget)


def score_case(name: str, n: int, budget: float) -> dict[str, object]:
    """PACS, or all conflict scores, of ROWS[n] rows; torch.sub moves the same bytes and does nothing else."""
    rows = ROWS[n]
    rewards, logprobs = torch.randn(rows, n), torch.randn(rows, n) * 20 - 300
    function, eager = {
        "pacs": (shfcas.pacs, eager_pacs),
        "conflict_scores": (shfcas.conflict_scores, eager_conflict_scores),
    }[name]
    compiled = torch.compile(eager, dynamic=False)
    expected, own = compiled(rewards, logprobs), function(rewards, logprobs)
    torch.testing.assert_close(tuple(own), tuple(expected), rtol=1e-3, atol=1e-3, check_dtype=False)
    rivals = {
        "torch.compile": (lambda: compiled(rewards, logprobs), rows),
        "eager": (lambda: eager(rewards, logprobs), rows),
        "torch.sub": (lambda: torch.sub(rewards, logprobs), rows),
    }
    return case(name, n, False, rows, rivals, lambda: function(rewards, logprobs), budget)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short timings: under a minute")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    budget = 0.1 if arguments.quick else 1.0
    tables = [
        [kendall_case(n, ties, budget) for n in ROWS for ties in (False, True)],
        [score_case("pacs", n, budget) for n in ROWS],
        [score_case("conflict_scores", n, budget) for n in ROWS],
    ]
    for table in tables:
        print_table(table)
    print_json("kendall", [case for table in tables for case in table])


if __name__ == "__main__":
    main()
