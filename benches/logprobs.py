"""Log-probabilities of sequences and tokens, compared with log_softmax, TRL's function and Liger's kernel.

    python -m benches.logprobs [--quick] [--threads T ...] [--device cuda] [--dtype D ...]

Cases are forward, and forward and backward, from logits; and both together from hidden states. Memory is the peak of a
call beyond the arguments; for backward it includes the gradients, of which that of logits has their size. Every rival
is checked to give the same result before timing, within the precision of its dtype: the rivals round each token's log-
probability to bfloat16, the op does not.
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
LINEAR = (2048, 64, 49152)  # tokens, width of the hidden states, vocabulary
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
            for op in ("sequence_logprobs", "token_logprobs"):
                yield [from_logits(op, dtype, backward, threads, chosen) for backward in (False, True)]
            yield [from_hidden_states(dtype, threads, chosen)]
    torch.set_num_threads(chosen.threads[0])
    if len(chosen.threads) > 1:
        logits, labels = data(SHAPE, torch.float32, chosen.device)
        own = Job(lambda: shfcas.sequence_logprobs(logits, labels), len(logits))
        yield [more_threads(own, about(logits, chosen.threads[-1], "threads"), chosen)]


def data(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Returns logits with a realistic spread, written in place so that the memory peak is not here."""
    logits = torch.empty(shape, dtype=dtype, device=device).normal_(std=3)
    return logits, torch.randint(shape[-1], shape[:-1], device=device)


def linear_data(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns hidden states, the weight of the output layer, and labels."""
    tokens, width, vocabulary = shape
    hidden = torch.empty(tokens, width, dtype=dtype, device=device).normal_(std=3 / width**0.5)
    weight = torch.empty(vocabulary, width, dtype=dtype, device=device).normal_()
    return hidden, weight, torch.randint(vocabulary, (tokens,), device=device)


def log_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Computes log-probabilities of tokens with log_softmax and gather."""
    return logits.log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)


def trl(logits: Tensor, labels: Tensor) -> Tensor:
    """Computes log-probabilities of tokens with TRL's function."""
    from trl.trainer.utils import selective_log_softmax

    return selective_log_softmax(logits, labels)


def liger(logits: Tensor, labels: Tensor) -> Tensor:
    """Computes log-probabilities of tokens with Liger's kernel, which needs a GPU."""
    from liger_kernel.transformers.functional import liger_cross_entropy

    return -liger_cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)


def linear_log_softmax(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Computes the logits, and log-probabilities from them."""
    return log_softmax(hidden @ weight.t(), labels)


def summed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda logits, labels: function(logits, labels).sum(-1)


EAGER = {"log_softmax": log_softmax, "trl": trl, "liger": liger}
OPS = {
    "sequence_logprobs": shfcas.sequence_logprobs,
    "token_logprobs": shfcas.token_logprobs,
    "linear_token_logprobs": shfcas.linear_token_logprobs,
}


def forward_and_backward(function: Callable[..., Tensor], inputs: list[Tensor], labels: Tensor) -> tuple[Tensor, ...]:
    """Returns the result, and the gradients of its sum."""
    result = function(*inputs, labels)
    return result, *torch.autograd.grad(result.sum(), inputs)


def call(function: Callable[..., Tensor], inputs: list[Tensor], labels: Tensor, backward: bool) -> Prepared:
    if not backward:
        return lambda: function(*inputs, labels)
    return lambda: forward_and_backward(function, [each.requires_grad_() for each in inputs], labels)


def from_logits(op: str, dtype: torch.dtype, backward: bool, threads: int, chosen: Settings) -> Case:
    """Times a batch, and measures its memory once for all threads; with --quick only the memory of the op."""
    logits, labels = data(SHAPE, dtype, chosen.device)
    wrap = summed if op == "sequence_logprobs" else lambda function: function
    functions: dict[str, Callable[..., Tensor]] = {name: wrap(function) for name, function in EAGER.items()}
    functions = {"torch.compile": compiled(wrap(log_softmax)), **functions}
    for name, package in (("trl", "trl"), ("liger", "liger_kernel")):
        if not installed(package) or (name == "liger" and chosen.device == "cpu"):
            del functions[name]
    jobs = {name: Job(call(function, [logits], labels, backward), SHAPE[0]) for name, function in functions.items()}
    own = Job(call(OPS[op], [logits], labels, backward), SHAPE[0])
    for name, job in jobs.items():
        tolerance = TOLERANCE[dtype]
        check_same(name, job.function(), own.function(), rtol=tolerance, atol=tolerance if backward else 0)
    name = "forward and backward" if backward else "forward"
    case = compare(
        about(logits, threads, name if op == "sequence_logprobs" else f"{op}, {name}"), own, jobs, chosen, "sequences"
    )
    return case | memory(op, SHAPE, [name for name in EAGER if name in jobs], dtype, backward, threads, chosen)


def from_hidden_states(dtype: torch.dtype, threads: int, chosen: Settings) -> Case:
    """Compares memory and time, forward and backward, with those of logits that are computed as a whole."""
    op = "linear_token_logprobs"
    *inputs, labels = linear_data(LINEAR, dtype, chosen.device)
    own = Job(call(OPS[op], inputs, labels, True), LINEAR[0])
    job = Job(call(linear_log_softmax, inputs, labels, True), LINEAR[0])
    check_same("log_softmax", job.function(), own.function(), rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])
    shape = " x ".join(map(str, LINEAR))
    case = compare(facts(op, inputs[0], threads, shape=shape), own, {"log_softmax": job}, chosen, unit="tokens")
    return case | memory(op, LINEAR, ["linear_log_softmax"], dtype, True, threads, chosen)


def memory(
    op: str,
    shape: tuple[int, int, int],
    rivals: list[str],
    dtype: torch.dtype,
    backward: bool,
    threads: int,
    chosen: Settings,
) -> Case:
    """Measures the peak memory of the op and its rivals, once for all threads."""
    positions = LINEAR[0] if op == "linear_token_logprobs" else shape[0] * shape[1]
    case: Case = {"logits MB": positions * shape[-1] * dtype.itemsize / 1e6}
    for name in [op, *([] if chosen.quick else rivals)] if threads == chosen.threads[0] else []:
        rest = (dtype, backward, chosen.device)
        column = "MB" if name == op else f"MB {name.removeprefix('linear_')}"
        case[column] = peak_mb(prepare, (op, name, SMALL, *rest), (op, name, shape, *rest), threads, chosen.device)
    return case


def about(logits: Tensor, threads: int, name: str) -> Case:
    return facts(name, logits, threads, shape=" x ".join(map(str, logits.shape)))


def prepare(
    op: str, name: str, shape: tuple[int, int, int], dtype: torch.dtype, backward: bool, device: str
) -> Prepared:
    """Returns the function whose memory is measured."""
    if op == "linear_token_logprobs":
        *inputs, labels = linear_data(shape, dtype, device)
        return call(OPS.get(name, linear_log_softmax), inputs, labels, backward)
    logits, labels = data(shape, dtype, device)
    function = OPS.get(name) or EAGER[name]
    if op == "sequence_logprobs" and name != op:
        function = summed(function)
    return call(function, [logits], labels, backward)


if __name__ == "__main__":
    main()
