"""Kendall's tau-b of each row with other libraries, which are imported inside the functions."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy
import torch
from torch import Tensor

from benches.bench import Job, compiled, installed

ONE_THREAD = ("numpy", "scipy loop", "scipy axis", "hyper-corr")  # independent of torch's threads
BROADCAST_VALUES = 1 << 22  # values of numpy's (B, N, N) array
SCIPY_ROWS, METRICS_ROWS = 50, 512  # the cost per row does not depend on the number of rows


def naive_tau_b(x: Tensor, y: Tensor) -> Tensor:
    """Computes the textbook formula over all pairs; compiled, it never writes the (B, N, N) array."""
    dx = torch.sign(x[:, :, None] - x[:, None, :])
    dy = torch.sign(y[:, :, None] - y[:, None, :])
    untied = (dx * dx).sum((1, 2)) * (dy * dy).sum((1, 2))
    return (dx * dy).sum((1, 2)) / untied.sqrt()


def broadcast_tau_b(x: numpy.ndarray, y: numpy.ndarray) -> numpy.ndarray:
    """Computes the same formula in numpy."""
    dx = numpy.sign(x[:, :, None] - x[:, None, :])
    dy = numpy.sign(y[:, :, None] - y[:, None, :])
    untied = (dx * dx).sum((1, 2)) * (dy * dy).sum((1, 2))
    return (dx * dy).sum((1, 2)) / numpy.sqrt(untied)


def scipy_loop(x: numpy.ndarray, y: numpy.ndarray) -> numpy.ndarray:
    """Loops over the rows, as the scripts of the paper do."""
    from scipy.stats import kendalltau

    return numpy.array([kendalltau(a, b).statistic for a, b in zip(x, y, strict=True)])


def scipy_axis(x: numpy.ndarray, y: numpy.ndarray) -> numpy.ndarray:
    """Computes all rows in one call, which needs a newer scipy."""
    from scipy.stats import kendalltau

    return kendalltau(x, y, axis=1).statistic


def torchmetrics_columns(x: Tensor, y: Tensor) -> Tensor:
    """Calls torchmetrics, where rows are columns."""
    from torchmetrics.functional.regression import kendall_rank_corrcoef

    return kendall_rank_corrcoef(x.T, y.T)


def hyper_corr(x: numpy.ndarray, y: numpy.ndarray, ties: bool) -> numpy.ndarray:
    """Calls hyper-corr's fastest form: compiled over all rows, sorted by numpy, no p-value, known presence of ties."""
    order = numpy.argsort(x, axis=1)
    return _hyper_corr_rows(ties)(numpy.take_along_axis(x, order, 1), numpy.take_along_axis(y, order, 1))


@functools.cache
def _hyper_corr_rows(ties: bool) -> Callable[[numpy.ndarray, numpy.ndarray], numpy.ndarray]:
    import hyper_corr
    import numba

    kernel = hyper_corr.kendalltau_ties if ties else hyper_corr.kendalltau_noties

    @numba.njit
    def rows(x_sorted: numpy.ndarray, y_ordered: numpy.ndarray) -> numpy.ndarray:
        taus = numpy.empty(x_sorted.shape[0])
        for b in range(x_sorted.shape[0]):
            taus[b] = kernel(x_sorted[b], y_ordered[b], x_sorted.shape[1], False)[0]
        return taus

    return rows


def rivals_of_rows(x: Tensor, y: Tensor, ties: bool, threads: int) -> dict[str, Job]:
    """Returns all available rivals for rows of moderate length, slow ones on a part of the rows.

    Rivals with one thread are skipped if the op has more.
    """
    rows, n = x.shape
    naive = compiled(naive_tau_b)
    jobs = {"torch.compile": Job(lambda: naive(x, y), rows)}
    if n >= 3 and installed("torchmetrics"):
        part = min(rows, METRICS_ROWS)
        jobs["torchmetrics"] = Job(lambda: torchmetrics_columns(x[:part], y[:part]), part)
    if threads > 1 or x.is_cuda:
        return jobs
    few, some = min(rows, max(1, BROADCAST_VALUES // n**2)), min(rows, SCIPY_ROWS)
    a, b = x.numpy(), y.numpy()
    jobs["numpy"] = Job(lambda: broadcast_tau_b(a[:few], b[:few]), few)
    if installed("scipy"):
        jobs["scipy loop"] = Job(lambda: scipy_loop(a[:some], b[:some]), some)
        if scipy_has_axis():
            jobs["scipy axis"] = Job(lambda: scipy_axis(a[:some], b[:some]), some)
    return jobs | hyper_corr_job(x, y, ties)


def hyper_corr_job(x: Tensor, y: Tensor, ties: bool) -> dict[str, Job]:
    """Returns the job of hyper-corr if it is installed; it needs at least three values per row."""
    if x.shape[1] < 3 or not installed("hyper_corr"):
        return {}
    return {"hyper-corr": Job(lambda: hyper_corr(x.numpy(), y.numpy(), ties), x.shape[0])}


@functools.cache
def scipy_has_axis() -> bool:
    """Returns whether this version of scipy supports an axis."""
    try:
        scipy_axis(numpy.eye(3), numpy.eye(3))
    except TypeError:
        print("skipping scipy axis: kendalltau of this version has no axis")
        return False
    return True
