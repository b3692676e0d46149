"""Kendall's tau-b of every two of many vectors, compared with pandas and others.

    python -m benches.matrix [--quick] [--threads T ...] [--device cuda] [--dtype D ...]

Every rival is checked to give the same matrix before timing. Rivals that loop over pairs get fewer vectors, with
--quick even fewer: their cost per pair is constant.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy
import torch
from torch import Tensor

import shfcas
from benches.bench import Case, Job, Settings, check_same, compare, facts, installed, report, settings
from benches.itself import more_threads, relative_time

SHAPES = [(500, 1000), (2000, 16)]  # vectors, values
LEVELS = 5  # values of a vector with many ties
QUICK_VECTORS, FULL_VECTORS, SCIPY_VECTORS = 50, 150, 40


def main() -> None:
    chosen = settings(__doc__, ["float64", "float32"], ["float64"])
    torch.manual_seed(0)
    report("matrix", tables(chosen), chosen)


def tables(chosen: Settings) -> Iterator[list[Case]]:
    """Yields one table after another, each as soon as it is measured."""
    for threads in chosen.threads:
        torch.set_num_threads(threads)
        for dtype in chosen.dtypes:
            yield [pairs(m, n, ties, dtype, threads, chosen) for m, n in SHAPES for ties in (False, True)]
    torch.set_num_threads(chosen.threads[0])
    yield [case for m, n in SHAPES for case in itself(m, n, chosen)]


def data(m: int, n: int, ties: bool, dtype: torch.dtype, device: str) -> Tensor:
    """Returns normal numbers, or with ties a few integers."""
    values = torch.empty(m, n, dtype=dtype, device=device)
    return values.random_(0, LEVELS) if ties else values.normal_()


def number_of_pairs(m: int) -> int:
    return m * (m - 1) // 2


def signs(x: Tensor) -> Tensor:
    """Multiplies the signs of all differences, mostly a matmul. float32 is exact up to 2^24 pairs."""
    products = x.new_zeros(len(x), len(x), dtype=torch.float32)
    for i in range(x.shape[1] - 1):
        sign = torch.sign(x[:, i, None] - x[:, i + 1 :]).float()
        products.addmm_(sign, sign.T)
    untied = products.diagonal().double().sqrt()
    return products / (untied[:, None] * untied)


def pandas_matrix(x: numpy.ndarray) -> numpy.ndarray:
    """Calls the method of pandas' data frames."""
    import pandas

    return pandas.DataFrame(x.T).corr(method="kendall").to_numpy(copy=True)


def scipy_matrix(x: numpy.ndarray) -> numpy.ndarray:
    """Loops over pairs with scipy."""
    from scipy.stats import kendalltau

    taus = numpy.eye(len(x))
    for i in range(len(x)):
        for j in range(i):
            taus[i, j] = taus[j, i] = kendalltau(x[i], x[j]).statistic
    return taus


def hyper_corr_matrix(x: numpy.ndarray, ties: bool) -> numpy.ndarray:
    """Calls hyper-corr's fastest form: each vector is sorted once, and the loop over pairs is compiled."""
    return _hyper_corr_pairs(ties)(x, numpy.argsort(x, axis=1))


@functools.cache
def _hyper_corr_pairs(ties: bool) -> Callable[[numpy.ndarray, numpy.ndarray], numpy.ndarray]:
    import hyper_corr
    import numba

    kernel = hyper_corr.kendalltau_ties if ties else hyper_corr.kendalltau_noties

    @numba.njit
    def pairs(x: numpy.ndarray, order: numpy.ndarray) -> numpy.ndarray:
        m, n = x.shape
        taus = numpy.eye(m)
        for i in range(m):
            x_sorted = x[i][order[i]]
            for j in range(i):
                taus[i, j] = taus[j, i] = kernel(x_sorted, x[j][order[i]], n, False)[0]
        return taus

    return pairs


def pairs(m: int, n: int, ties: bool, dtype: torch.dtype, threads: int, chosen: Settings) -> Case:
    """Times all pairs of m vectors of n values; rivals with one thread are skipped if the op has more."""
    x = data(m, n, ties, dtype, chosen.device)
    few = min(m, QUICK_VECTORS if chosen.quick else FULL_VECTORS)
    rivals = {"signs @ signs.T": (signs, x)}
    if threads == 1 and chosen.device == "cpu":
        if installed("pandas"):
            rivals["pandas"] = (pandas_matrix, x[:few].numpy())
        if installed("scipy"):
            rivals["scipy loop"] = (scipy_matrix, x[:SCIPY_VECTORS].numpy())
        if installed("hyper_corr"):
            rivals["hyper-corr"] = (functools.partial(hyper_corr_matrix, ties=ties), x[:few].numpy())
    own = shfcas.kendall_tau_matrix(x)
    jobs = {}
    for name, (function, values) in rivals.items():
        part = len(values)
        check_same(name, function(values), own[:part, :part], rtol=1e-4, atol=1e-5)
        jobs[name] = Job(functools.partial(function, values), number_of_pairs(part))
    job = Job(lambda: shfcas.kendall_tau_matrix(x), number_of_pairs(m))
    about = facts("kendall_tau_matrix", x, threads, M=m, N=n, ties="yes" if ties else "no")
    return compare(about, job, jobs, chosen, unit="pairs")


def itself(m: int, n: int, chosen: Settings) -> Iterator[Case]:
    """Compares vectors with and without ties, and numbers of threads."""

    def job(x: Tensor) -> Job:
        return Job(lambda: shfcas.kendall_tau_matrix(x), number_of_pairs(m))

    x = data(m, n, False, torch.float64, chosen.device)
    tied = data(m, n, True, torch.float64, chosen.device)
    about = facts("ties", x, chosen.threads[0], M=m, N=n)
    yield relative_time(about, job(tied), {"no ties": job(x)}, chosen)
    if len(chosen.threads) > 1:
        yield more_threads(job(x), facts("threads", x, chosen.threads[-1], M=m, N=n), chosen)


if __name__ == "__main__":
    main()
