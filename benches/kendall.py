"""Counting of concordant and discordant pairs, compared with other libraries and textbook code.

    python -m benches.kendall [--quick] [--threads T ...] [--device cuda] [--dtype D ...]

Rivals compute tau-b; the op computes the five counts behind it. Every rival is checked to give the same tau-b before
timing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

import shfcas
from benches.bench import Case, Job, Settings, check_same, compare, facts, installed, report, settings
from benches.itself import jagged_beside_dense, more_threads, relative_time
from benches.kendall_rivals import hyper_corr, hyper_corr_job, rivals_of_rows, scipy_loop
from benches.memory import Prepared, peak_mb

ROWS = {8: 1 << 17, 16: 1 << 16, 64: 1 << 13, 1024: 64}
CUDA_ROWS = {8: 1 << 20, 16: 1 << 20, 64: 1 << 17, 1024: 1000}
BORDERS = [(64, 65), (256, 257), (1000, 1024), (1024, 1025)]  # row lengths where the algorithm changes
LONG, LONGEST = 1_000_000, 10_000_000
DISTINCT = 30  # values of the long row with ties
OWN_BYTES = 40  # five counts


def main() -> None:
    chosen = settings(__doc__, ["float32", "float64"], ["float32", "float64"])
    torch.manual_seed(0)
    report("kendall", tables(chosen), chosen)


def tables(chosen: Settings) -> Iterator[list[Case]]:
    """Yields one table after another, each as soon as it is measured."""
    rows = CUDA_ROWS if chosen.device == "cuda" else ROWS
    for threads in chosen.threads:
        torch.set_num_threads(threads)
        for dtype in chosen.dtypes:
            yield [short(rows[n], n, ties, dtype, threads, chosen) for n in rows for ties in (False, True)]
            yield [long(LONG, ties, dtype, threads, True, chosen) for ties in (False, True)]
        if threads == chosen.threads[0] or not chosen.quick:
            yield [long(LONGEST, False, torch.float32, threads, not chosen.quick, chosen)]
    torch.set_num_threads(chosen.threads[0])
    yield [overhead(name, chosen) for name in ("kendall_counts", "kendall_tau", "kendall_distance")]
    yield list(itself(rows, chosen))


def data(rows: int, n: int, ties: bool, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Returns normal numbers, with ties rounded to a dozen values; no row is constant, where hyper-corr returns 0."""
    x, y = torch.randn(2, rows, n, dtype=dtype, device=device)
    if ties:
        x, y = (x * 2).round(), (y * 2).round()
        x[:, 0], x[:, 1], y[:, 0], y[:, 1] = -1, 1, -1, 1
    return x, y


def short(rows: int, n: int, ties: bool, dtype: torch.dtype, threads: int, chosen: Settings) -> Case:
    """Times many rows; torch.sub reads as many bytes without further work."""
    x, y = data(rows, n, ties, dtype, chosen.device)
    rivals = rivals_of_rows(x, y, ties, threads)
    own = shfcas.kendall_tau(x, y).cpu()
    for name, job in rivals.items():
        check_same(name, job.function(), own[: job.work], rtol=1e-4, atol=1e-5)
    values = x.numel() * x.element_size()
    rivals["torch.sub"] = Job(lambda: torch.sub(x, y), rows, 3 * values)
    job = Job(lambda: shfcas.kendall_counts(x, y), rows, 2 * values + OWN_BYTES * rows)
    about = facts("kendall_counts", x, threads, B=rows, N=n, ties="yes" if ties else "no")
    return compare(about, job, rivals, chosen)


def long(n: int, ties: bool, dtype: torch.dtype, threads: int, with_rivals: bool, chosen: Settings) -> Case:
    """Times one row, and measures its memory once for all threads; with --quick only the memory of the op."""
    values = (ties, dtype, chosen.device)
    x, y = long_data(n, *values)
    jobs: dict[str, Job] = {}
    if with_rivals and threads == 1 and chosen.device == "cpu":
        if installed("scipy"):
            jobs["scipy"] = Job(lambda: scipy_loop(x.numpy(), y.numpy()), 1)
        jobs |= hyper_corr_job(x, y, ties)
        own = shfcas.kendall_tau(x, y)
        for name, job in jobs.items():
            check_same(name, job.function(), own)
    case = compare(
        facts("one row", x, threads, N=n, ties="yes" if ties else "no"),
        Job(lambda: shfcas.kendall_counts(x, y), 1),
        jobs,
        chosen,
    )
    weighed = ["", *([] if chosen.quick else jobs)]
    for name in weighed if threads == chosen.threads[0] else []:
        peak = peak_mb(prepare_long, (name, 100, *values), (name, n, *values), threads, chosen.device)
        case[f"MB {name}".strip()] = peak
    return case


def long_data(n: int, ties: bool, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Returns one row; ties come from few distinct values."""
    values = torch.empty(2, 1, n, dtype=dtype, device=device)
    x, y = values.random_(0, DISTINCT) if ties else values.normal_()
    return x, y


def prepare_long(name: str, n: int, ties: bool, dtype: torch.dtype, device: str) -> Prepared:
    """Returns the function whose memory is measured."""
    x, y = long_data(n, ties, dtype, device)
    if name == "scipy":
        return lambda: scipy_loop(x.numpy(), y.numpy())
    if name == "hyper-corr":
        return lambda: hyper_corr(x.numpy(), y.numpy(), ties)
    return lambda: shfcas.kendall_counts(x, y)


def overhead(name: str, chosen: Settings) -> Case:
    """Times a call from Python on a single row of eight."""
    x, y = data(1, 8, False, torch.float32, chosen.device)
    about = facts("one call", x, chosen.threads[0], op=name)
    return compare(about, Job(partial(getattr(shfcas, name), x, y), 1), {}, chosen, unit="calls")


def itself(rows: dict[int, int], chosen: Settings) -> Iterator[Case]:
    """Compares the op on different kinds of rows, in turns."""
    threads, device = chosen.threads[0], chosen.device
    for before, after in BORDERS:
        few = max(rows[1024], (rows[64] * 64) // before)
        x, y = data(few, after, False, torch.float32, device)
        shorter = counting(*data(few, before, False, torch.float32, device))
        yield relative_time(
            facts("border", x, threads, B=few, N=after), counting(x, y), {f"N = {before}": shorter}, chosen
        )
    for n, count in rows.items():
        x, y = data(count, n, False, torch.float32, device)
        own = counting(x, y)
        tied = counting(*data(count, n, True, torch.float32, device))
        yield relative_time(facts("ties", x, threads, B=count, N=n), tied, {"no ties": own}, chosen)
        double = x.double()
        about = facts("float64", double, threads, B=count, N=n)
        yield relative_time(about, counting(double, y.double()), {"float32": own}, chosen)
        yield from jagged_beside_dense(shfcas.kendall_counts, x, y, threads, chosen)
        if len(chosen.threads) > 1:
            yield more_threads(own, facts("threads", x, chosen.threads[-1], B=count, N=n), chosen)


def counting(x: Tensor, y: Tensor) -> Job:
    return Job(partial(shfcas.kendall_counts, x, y), len(x))


if __name__ == "__main__":
    main()
