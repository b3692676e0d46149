"""PACS, and all conflict scores in one pass, compared with plain torch.

    python -m benches.pacs [--quick] [--threads T ...] [--device cuda] [--dtype D ...]

Every rival is checked to give the same result before timing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

import shfcas
from benches.bench import Case, Job, Settings, check_same, compare, compiled, facts, report, settings
from benches.itself import jagged_beside_dense, more_threads, relative_time

ROWS = {8: 1 << 17, 16: 1 << 16, 64: 1 << 14, 1024: 1 << 10}  # about the same bytes each
CUDA_MORE = 16  # factor of the number of rows on a GPU
PAIR_VALUES = 1 << 24  # values of the (B, N, N) arrays of the eager formula of tau


def main() -> None:
    chosen = settings(__doc__, ["float32", "float64"], ["float32", "float64"])
    torch.manual_seed(0)
    report("pacs", tables(chosen), chosen)


def tables(chosen: Settings) -> Iterator[list[Case]]:
    """Yields one table after another, each as soon as it is measured."""
    more = CUDA_MORE if chosen.device == "cuda" else 1
    rows = {n: count * more for n, count in ROWS.items()}
    for threads in chosen.threads:
        torch.set_num_threads(threads)
        for dtype in chosen.dtypes:
            yield [pacs(rows[n], n, dtype, threads, chosen) for n in rows]
            yield [conflict_scores(rows[n], n, dtype, threads, chosen) for n in rows]
    torch.set_num_threads(chosen.threads[0])
    yield [overhead(name, chosen) for name in ("pacs", "conflict_scores")]
    yield [case for n in rows for case in itself(rows[n], n, chosen)]


def data(rows: int, n: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Returns rewards, and log-probabilities of realistic size."""
    rewards, logprobs = torch.randn(2, rows, n, dtype=dtype, device=device)
    return rewards, logprobs.mul_(20).sub_(300)


def eager_pacs(rewards: Tensor, logprobs: Tensor) -> Tensor:
    """Computes PACS in plain torch."""

    def z(v: Tensor) -> Tensor:
        std, mean = torch.std_mean(v, dim=-1, correction=0, keepdim=True)
        return torch.where(std < 1e-6, 0, (v - mean) / std)

    return z(rewards) - z(logprobs)


def eager_conflict_scores(rewards: Tensor, logprobs: Tensor) -> tuple[Tensor, ...]:
    """Computes all five results in plain torch; pairs are compared once for distance and tau-b."""
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


def pacs(rows: int, n: int, dtype: torch.dtype, threads: int, chosen: Settings) -> Case:
    """Times PACS; torch.sub moves the same bytes without further work."""
    x, y = data(rows, n, dtype, chosen.device)
    fused = compiled(eager_pacs)
    rivals = {
        "torch.compile": Job(lambda: fused(x, y), rows),
        "eager": Job(lambda: eager_pacs(x, y), rows),
    }
    for name, job in rivals.items():
        check_same(name, job.function(), shfcas.pacs(x, y), rtol=1e-3, atol=1e-3)
    moved = 3 * x.numel() * x.element_size()
    rivals["torch.sub"] = Job(lambda: torch.sub(x, y), rows, moved)
    own = Job(lambda: shfcas.pacs(x, y), rows, moved)
    return compare(facts("pacs", x, threads, B=rows, N=n), own, rivals, chosen)


def conflict_scores(rows: int, n: int, dtype: torch.dtype, threads: int, chosen: Settings) -> Case:
    """Times all conflict scores; the eager formula runs on as many rows as fit, the compiled one on all."""
    x, y = data(rows, n, dtype, chosen.device)
    fused = compiled(eager_conflict_scores)
    few = min(rows, max(1, PAIR_VALUES // n**2))
    rivals = {
        "torch.compile": Job(lambda: fused(x, y), rows),
        "eager": Job(lambda: eager_conflict_scores(x[:few], y[:few]), few),
    }
    own = shfcas.conflict_scores(x, y)
    for name, job in rivals.items():
        check_same(name, job.function(), tuple(result[: job.work] for result in own), rtol=1e-3, atol=1e-3)
    about = facts("conflict_scores", x, threads, B=rows, N=n)
    return compare(about, Job(lambda: shfcas.conflict_scores(x, y), rows), rivals, chosen)


def overhead(name: str, chosen: Settings) -> Case:
    """Times a call from Python on a single prompt with eight answers."""
    x, y = data(1, 8, torch.float32, chosen.device)
    about = facts("one call", x, chosen.threads[0], op=name)
    return compare(about, Job(partial(getattr(shfcas, name), x, y), 1), {}, chosen, unit="calls")


def itself(rows: int, n: int, chosen: Settings) -> Iterator[Case]:
    """Compares all scores with the slower of their parts, and PACS in other layouts and on more threads."""
    threads = chosen.threads[0]
    x, y = data(rows, n, torch.float32, chosen.device)
    own = Job(partial(shfcas.pacs, x, y), rows)
    parts = {"pacs": own, "kendall_tau": Job(partial(shfcas.kendall_tau, x, y), rows)}
    whole = Job(partial(shfcas.conflict_scores, x, y), rows)
    yield relative_time(facts("conflict_scores, parts", x, threads, B=rows, N=n), whole, parts, chosen)
    doubles = x.double(), y.double()
    about = facts("float64", doubles[0], threads, B=rows, N=n)
    yield relative_time(about, Job(partial(shfcas.pacs, *doubles), rows), {"float32": own}, chosen)
    yield from jagged_beside_dense(shfcas.pacs, x, y, threads, chosen)
    if len(chosen.threads) > 1:
        yield more_threads(own, facts("threads", x, chosen.threads[-1], B=rows, N=n), chosen)


if __name__ == "__main__":
    main()
