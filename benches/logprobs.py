"""Log-probabilities of sequences from logits, compared with log_softmax and TRL's function.

    python -m benches.logprobs [--quick] [--threads T ...] [--device cuda] [--dtype D ...]

Cases are forward, and forward and backward. Memory is the peak of a call beyond the logits; for backward it includes
the gradient, which has the size of the logits. Every rival is checked to give the same result before timing, within the
precision of its dtype: the rivals round each token's log-probability to bfloat16, the op does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import shfcas
from benches.bench import Case, Job, Settings, check_same, compare, compiled, facts, installed, report, settings
from benches.itself import more_threads
from benches.memory import Prepared, peak_mb

SHAPE = (8, 128, 49152)  # sequences, tokens, vocabulary
SMALL = (2, 3, 50)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def main() -> None:
    chosen = settings(__doc__, ["float32", "bfloat16"], ["float32", "bfloat16"])
    torch.manual_seed(0)
    report("logprobs", tables(chosen), chosen)


def tables(chosen: Settings) -> Iterator[list[Case]]:
    """Yields one table after another, each as soon as it is measured."""
    for threads in chosen.threads:
        torch.set_num_threads(threads)
        for dtype in chosen.dtypes:
            yield [sequences(dtype, backward, threads, chosen) for backward in (False, True)]
    torch.set_num_threads(chosen.threads[0])
    if len(chosen.threads) > 1:
        logits, labels = data(SHAPE, torch.float32, chosen.device)
        own = Job(lambda: shfcas.sequence_logprobs(logits, labels), len(logits))
        yield [more_threads(own, about(logits, chosen.threads[-1], "threads"), chosen)]


def data(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Returns logits with a realistic spread, written in place so that the memory peak is not here."""
    logits = torch.empty(shape, dtype=dtype, device=device).normal_(std=3)
    return logits, torch.randint(shape[-1], shape[:-1], device=device)


def log_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Computes log-probabilities with log_softmax and gather."""
    return logits.log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1).sum(-1)


def trl(logits: Tensor, labels: Tensor) -> Tensor:
    """Computes log-probabilities with TRL's function."""
    from trl.trainer.utils import selective_log_softmax

    return selective_log_softmax(logits, labels).sum(-1)


EAGER = {"log_softmax": log_softmax, "trl": trl}


def forward_and_backward(function: Callable[..., Tensor], logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the result, and the gradient of its sum."""
    result = function(logits, labels)
    (gradient,) = torch.autograd.grad(result.sum(), logits)
    return result, gradient


def call(function: Callable[..., Tensor], logits: Tensor, labels: Tensor, backward: bool) -> Prepared:
    if not backward:
        return lambda: function(logits, labels)
    return lambda: forward_and_backward(function, logits.requires_grad_(), labels)


def sequences(dtype: torch.dtype, backward: bool, threads: int, chosen: Settings) -> Case:
    """Times a batch, and measures its memory once for all threads; with --quick only the memory of the op."""
    logits, labels = data(SHAPE, dtype, chosen.device)
    functions: dict[str, Callable[..., Tensor]] = {"torch.compile": compiled(log_softmax), **EAGER}
    if not installed("trl"):
        del functions["trl"]
    jobs = {name: Job(call(function, logits, labels, backward), SHAPE[0]) for name, function in functions.items()}
    own = Job(call(shfcas.sequence_logprobs, logits, labels, backward), SHAPE[0])
    for name, job in jobs.items():
        tolerance = TOLERANCE[dtype]
        check_same(name, job.function(), own.function(), rtol=tolerance, atol=tolerance if backward else 0)
    name = "forward and backward" if backward else "forward"
    case = compare(about(logits, threads, name), own, jobs, chosen, unit="sequences")
    case["logits MB"] = logits.numel() * logits.element_size() / 1e6
    weighed = ["", *([] if chosen.quick else [name for name in EAGER if name in jobs])]
    for name in weighed if threads == chosen.threads[0] else []:
        rest = (dtype, backward, chosen.device)
        peak = peak_mb(prepare, (name, SMALL, *rest), (name, SHAPE, *rest), threads, chosen.device)
        case[f"MB {name}".strip()] = peak
    return case


def about(logits: Tensor, threads: int, name: str) -> Case:
    return facts(name, logits, threads, shape=" x ".join(map(str, logits.shape)))


def prepare(name: str, shape: tuple[int, int, int], dtype: torch.dtype, backward: bool, device: str) -> Prepared:
    """Returns the function whose memory is measured."""
    return call(EAGER.get(name, shfcas.sequence_logprobs), *data(shape, dtype, device), backward)


if __name__ == "__main__":
    main()
