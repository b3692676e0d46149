"""What the ops reach of what a GPU can do: bytes per second beside its copies, pairs beside its instructions.

    python -m benches.gpu_floors

Every op is captured in a CUDA graph and timed with events, so neither Python nor launches count. Buffers are far
larger than the cache: short rows come in 2^23 and more, and small inputs take turns. Beside every op that memory
limits, a copy of as many bytes is timed. The bars are those for an H100. The last line is all results as JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

import shfcas
from benches.bench import Case, Settings, report
from benches.clock import QUICK, Timing

DEVICE = "cuda"
VALUES = 1 << 27  # of each tensor of rows: 512 MB in float32, and 2^24 rows of 8
COLD = 1 << 28  # bytes of inputs that take turns, more than any cache holds
MOST_TURNS = 32
READINGS, SHORTEST = 7, 0.01  # readings of a time, and seconds of one at least
LANES = 128  # a multiprocessor issues instructions of four warps per clock
PER_PAIR = 8  # instructions to compare a pair without ties, at the least
LENGTHS = (128, 192, 256, 384, 512)  # of the rows that are counted by comparing and by sorting
SWITCH = "SHFCAS_CUDA_CROSSOVER"  # longest row that is counted by comparing, 64 to 512
LOGITS = (4, 512, 128_256)

Call = Callable[[], object]


def matrix(x: Tensor, _: Tensor) -> Tensor:
    return shfcas.kendall_tau_matrix(x)


WHOLE_CALLS: list[tuple[str, Callable, tuple[int, int], int, float]] = [  # op, shape, distinct values, most ms
    ("kendall_distance", shfcas.kendall_distance, (1000, 1024), 0, 0.25),
    ("kendall_distance, ties", shfcas.kendall_distance, (1000, 1024), 8, 0.25),
    ("kendall_distance", shfcas.kendall_distance, (1, 1_000_000), 0, 1.0),
    ("kendall_tau_matrix", matrix, (500, 1000), 0, 1.0),
    ("kendall_tau_matrix, ties", matrix, (500, 1000), 8, 1.0),
]


class Bar(NamedTuple):
    """Bound for a column of a case."""

    column: str
    relation: str  # ">=" or "<="
    bound: float

    def columns(self, case: Case) -> Case:
        """Returns the bar and whether the case reaches it."""
        value = case[self.column]
        reached = value >= self.bound if self.relation == ">=" else value <= self.bound
        return {"bar": f"{self.column} {self.relation} {self.bound:g}", "reached": reached}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", help="only the seconds of rows of these lengths, as JSON")
    lengths = parser.parse_args().lengths
    if reason := refusal():
        sys.exit(f"gpu_floors: {reason}")
    torch.manual_seed(0)
    if lengths:
        print(json.dumps({str(n): seconds_of_rows(n) for n in lengths}))
    else:
        report("gpu_floors", tables(), Settings(QUICK, [1], "cuda", [torch.float32]))


def refusal() -> str:
    """Returns why nothing can be measured here, or ""."""
    if not torch.cuda.is_available():
        return f"no CUDA device (torch {torch.__version__})"
    return "" if shfcas.build_facts()["cuda"] else "shfcas was built without CUDA kernels"


def tables() -> Iterator[list[Case]]:
    """Yields one table after another, each as soon as it is measured."""
    yield [by_memory("kendall_distance", n, shfcas.kendall_distance, 2, 0, 8) for n in (8, 16)]
    yield [by_memory("pacs", n, shfcas.pacs, 2, 1, 0) for n in (8, 16, 64, 1024)]
    yield [by_memory("conflict_scores", n, shfcas.conflict_scores, 2, 1, 21) for n in (8, 16)]
    yield list(of_logits())
    yield [by_pairs(n) for n in (32, 64)]
    yield list(whole_calls())
    yield crossover()


def pairs_of(n: int) -> int:
    return n * (n - 1) // 2


def pairs_per_second(multiprocessors: int, megahertz: float) -> float:
    """Returns the pairs per second if nothing but the instructions of the pairs took time."""
    return multiprocessors * LANES * megahertz * 1e6 / PER_PAIR


def bytes_of_rows(rows: int, n: int, width: int, *, tensors: int, per_row: int) -> int:
    """Returns the bytes of some tensors of rows, and of results with some bytes per row."""
    return rows * (n * width * tensors + per_row)


def beside_copy(moved: int, seconds: float, copied: int, copy_seconds: float) -> Case:
    """Returns the columns of an op that moves bytes, beside a copy, which reads and writes each of its bytes."""
    own, copy = moved / seconds / 1e9, 2 * copied / copy_seconds / 1e9
    return {"GB/s": own, "copy GB/s": copy, "of copy": own / copy}


def beside_pairs(pairs: int, seconds: float, floor: float) -> Case:
    """Returns the columns of an op that compares pairs, beside the pairs per second of pairs_per_second."""
    own = pairs / seconds
    return {"pairs/s": own, "floor pairs/s": floor, "of floor": own / floor}


def turns(bytes_of_input: int) -> int:
    """Returns how many inputs take turns, so that none is in the cache when it is read again."""
    return max(1, min(MOST_TURNS, math.ceil(COLD / max(bytes_of_input, 1))))


def longest_by_pairs(by_pairs: dict[int, float], by_sorting: dict[int, float]) -> int:
    """Returns the longest row before the first that is sorted faster than compared; 0 if there is none."""
    longest = 0
    for n in sorted(by_pairs):
        if by_sorting[n] < by_pairs[n]:
            break
        longest = n
    return longest


def timed(calls: list[Call]) -> Timing:
    """Times calls, all in one graph, one after another; returns seconds per call on the device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()

    def reading(replays: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / replays

    reading(1)  # the first replay uploads the graph
    replays = max(1, math.ceil(SHORTEST / reading(1)))
    times = [reading(replays) / len(calls) for _ in range(READINGS)]
    return Timing(statistics.median(times), min(times), len(times))


def milliseconds(time: Timing) -> Case:
    return {"ms": time.median * 1e3, "least ms": time.least * 1e3}


def time_of_copy(copied: int) -> float:
    """Returns the seconds of a copy of that many bytes."""
    source = torch.empty(copied, dtype=torch.uint8, device=DEVICE).fill_(1)
    result = torch.empty_like(source)
    return timed([lambda: result.copy_(source)]).median


def rows_of(rows: int, n: int, distinct: int = 0) -> tuple[Tensor, Tensor]:
    """Returns two tensors of random rows; few distinct values make many ties."""
    x, y = torch.randn(rows, n, device=DEVICE), torch.randn(rows, n, device=DEVICE)
    return (x.mul_(distinct).round_(), y.mul_(distinct).round_()) if distinct else (x, y)


def by_memory(name: str, n: int, op: Callable, read: int, written: int, per_row: int) -> Case:
    """Times an op of short rows, which memory is to limit."""
    rows = VALUES // n
    x, y = rows_of(rows, n)
    time = timed([lambda: op(x, y)])
    moved = bytes_of_rows(rows, n, x.element_size(), tensors=read + written, per_row=per_row)
    case = {"case": name, "rows": rows, "N": n} | milliseconds(time)
    case |= beside_copy(moved, time.median, moved // 2, time_of_copy(moved // 2))
    return case | Bar("of copy", ">=", 0.8).columns(case)


def of_logits() -> Iterator[Case]:
    """Times log-probabilities in bfloat16: forward reads the logits once, the gradient reads and writes them."""
    ops = torch.ops.shfcas
    logits = torch.randn(LOGITS, device=DEVICE, dtype=torch.bfloat16)
    labels = torch.randint(0, LOGITS[-1], LOGITS[:2], device=DEVICE)
    _, logprobs, _, normalizer = ops.token_statistics(logits, labels, None, 1.0, False)
    gradient = torch.ones_like(logprobs, dtype=torch.float64)
    calls: dict[str, tuple[Call, int]] = {
        "token_statistics": (lambda: ops.token_statistics(logits, labels, None, 1.0, False), 1),
        "with entropies": (lambda: ops.token_statistics(logits, labels, None, 1.0, True), 1),
        "gradient": (
            lambda: ops.token_statistics_backward(gradient, None, logits, labels, None, None, normalizer, 1.0),
            2,
        ),
    }
    for name, (call, times) in calls.items():
        time, moved = timed([call]), times * logits.numel() * logits.element_size()
        case = {"case": name, "positions": labels.numel(), "vocabulary": LOGITS[-1]} | milliseconds(time)
        case |= beside_copy(moved, time.median, moved // 2, time_of_copy(moved // 2))
        yield case | Bar("of copy", ">=", 0.8).columns(case)


def by_pairs(n: int) -> Case:
    """Times rows whose pairs are to be the limit."""
    rows = VALUES // n
    x, y = rows_of(rows, n)
    time = timed([lambda: shfcas.kendall_distance(x, y)])
    case = {"case": "kendall_distance", "rows": rows, "N": n} | milliseconds(time)
    card = torch.cuda.get_device_properties(0)
    floor = pairs_per_second(card.multi_processor_count, card.clock_rate / 1e3)  # from kHz: the highest clock
    case |= beside_pairs(rows * pairs_of(n), time.median, floor)
    return case | Bar("of floor", ">=", 0.6).columns(case)


def whole_calls() -> Iterator[Case]:
    """Times calls that have to end within some time, on inputs that are not in the cache."""
    for name, op, (rows, n), distinct, bound in WHOLE_CALLS:
        inputs = [rows_of(rows, n, distinct) for _ in range(turns(2 * rows * n * 4))]
        time = timed([functools.partial(op, x, y) for x, y in inputs])
        case = {"case": name, "rows": rows, "N": n} | milliseconds(time)
        yield case | Bar("ms", "<=", bound).columns(case)


def seconds_of_rows(n: int) -> dict[str, float]:
    """Returns the seconds of rows of one length, without and with ties."""
    rows = (VALUES >> 3) // n
    return {
        name: timed([functools.partial(shfcas.kendall_distance, *rows_of(rows, n, distinct))]).median
        for name, distinct in (("untied", 0), ("tied", 8))
    }


def crossover() -> list[Case]:
    """Times rows around the length from which they are sorted, in both ways, each in a process of its own."""
    seconds = {}
    for way, longest in (("pairs", "512"), ("sorting", "64")):
        command = [sys.executable, "-m", "benches.gpu_floors", "--lengths", *map(str, LENGTHS)]
        run = subprocess.run(command, env={**os.environ, SWITCH: longest}, capture_output=True, text=True)
        if run.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: status {run.returncode}: {run.stderr[-500:]}")
        seconds[way] = {int(n): times for n, times in json.loads(run.stdout.strip().rpartition("\n")[2]).items()}
    return cases_of_crossover(seconds["pairs"], seconds["sorting"])


def cases_of_crossover(by_pairs: dict[int, dict[str, float]], by_sorting: dict[int, dict[str, float]]) -> list[Case]:
    """Returns a case for each length, without and with ties, and the longest row to compare."""
    cases = []
    for kind in ("untied", "tied"):
        pairs, sort = ({n: times[kind] for n, times in way.items()} for way in (by_pairs, by_sorting))
        best = longest_by_pairs(pairs, sort)
        for n in sorted(pairs):
            about = {"case": f"crossover, {kind}", "rows": (VALUES >> 3) // n, "N": n}
            cases.append(about | {"pairs ms": pairs[n] * 1e3, "sorting ms": sort[n] * 1e3, "longest by pairs": best})
    return cases


if __name__ == "__main__":
    main()
