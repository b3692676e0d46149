"""The ways through the CPU kernels: lengths and numbers of rows, keys of every kind, instruction sets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rows import assert_all_equal, make_jagged, make_rows
from torch import Tensor

import shfcas

# Around the changes of kernel beyond the sizes of rows.py: blocks of 32-bit and 64-bit keys, idle lanes, radix sort.
LENGTHS = (103, 104, 105, 129, 255, 256, 257, 511, 512, 513, 1024, 1025, 4095, 4096, 4097)


def brute_force(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Counts of all pairs of each row, compared in torch, some hundred values with all at a time."""
    rows = []
    for a, b in zip(x, y, strict=True):
        counts = torch.zeros(5, dtype=torch.int64)
        for one, other in zip(a.split(256), b.split(256), strict=True):
            one, other = one[:, None], other[:, None]
            less_x, same_x, same_y = one < a, one == a, other == b
            compared = less_x & (other < b), less_x & (other > b), same_x, same_y, same_x & same_y
            counts += torch.stack([each.count_nonzero() for each in compared])
        counts[2:] = (counts[2:] - len(a)) // 2  # of two that tie, both were compared, and each with itself
        rows.append(counts)
    return torch.stack(rows).unbind(1)


@pytest.mark.parametrize("distinct", [None, 40])
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lengths(dtype, n, distinct):
    x, y = make_rows((2, n), dtype, 0, distinct), make_rows((2, n), dtype, 1, distinct)
    assert_all_equal(shfcas.kendall_counts(x, y), brute_force(x, y))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 8, 9, 16, 17, 33])
@pytest.mark.parametrize("n", [7, 16, 64, 65, 150, 700])
def test_numbers_of_rows(n, count):
    x, y = make_rows((count, n), torch.float32, 2, 60), make_rows((count, n), torch.float32, 3, 60)
    assert_all_equal(shfcas.kendall_counts(x, y), brute_force(x, y))


def hard_keys(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """64-bit numbers whose leading bits do not tell them apart, or whose range is extreme."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 50, shape, generator=generator)
    if kind == "last bits":
        return torch.tensor(1.0, dtype=torch.float64).nextafter(torch.tensor(2.0)) + small * 2.0**-52
    if kind == "clusters":
        return torch.randint(-2, 3, shape, generator=generator).double() * 1e300 + small * 1e-300
    if kind == "duplicates of long fractions":
        return torch.rand(50, dtype=torch.float64, generator=generator)[small]
    if kind == "denormals and infinities":
        values = torch.tensor([5e-324, -5e-324, 0.0, -0.0, torch.inf, -torch.inf, 1.0], dtype=torch.float64)
        return values[small % len(values)]
    if kind == "extreme integers":
        return torch.where(small % 2 == 0, 2**63 - 1 - small, -(2**63) + small)
    raise AssertionError(kind)


@pytest.mark.parametrize("n", [5, 16, 60, 130, 600, 4200])
@pytest.mark.parametrize(
    "kind", ["last bits", "clusters", "duplicates of long fractions", "denormals and infinities", "extreme integers"]
)
def test_keys_that_are_hard_to_tell_apart(kind, n):
    x, y = hard_keys(kind, (3, n), 4), hard_keys(kind, (3, n), 5)
    assert_all_equal(shfcas.kendall_counts(x, y), brute_force(x, y))


@pytest.mark.parametrize("n", [16, 100, 1000, 5000, 70_000])
def test_orders_that_are_known(n):
    x = torch.arange(n, dtype=torch.float32).expand(3, n)
    pairs = n * (n - 1) // 2
    assert shfcas.kendall_counts(x, x).concordant.tolist() == [pairs] * 3
    assert shfcas.kendall_counts(x, -x).discordant.tolist() == [pairs] * 3
    rotated = x.roll(1, -1)  # the last element comes first: it is discordant with all others
    assert shfcas.kendall_counts(x, rotated).discordant.tolist() == [n - 1] * 3


def test_very_long_row_with_known_counts():
    n = 1_000_000
    order = torch.randperm(n, generator=torch.Generator().manual_seed(6))
    x, y = torch.arange(n)[order], (n - torch.arange(n) // 2 * 2)[order]  # neighbours tie in y
    counts = shfcas.kendall_counts(x, y)
    assert counts.tied_y == n // 2
    assert counts.discordant == n * (n - 1) // 2 - n // 2
    assert counts.concordant == counts.tied_x == counts.tied_both == 0


def test_what_lies_behind_the_rows_does_not_matter():
    # Kernels read whole registers. That they write no further than the results is for `make sanitize`.
    for n in (1, 3, 5, 13, 31, 33, 63, 65):
        rewards, logprobs = make_rows((9, n), torch.float32, 7), make_rows((9, n), torch.float32, 8)
        beside = torch.full((9 * n + 64,), torch.nan)
        beside[: 9 * n] = rewards.flatten()
        inside = beside[: 9 * n].view(9, n)
        assert_all_equal(shfcas.conflict_scores(inside, logprobs), shfcas.conflict_scores(rewards, logprobs))


@pytest.mark.parametrize("scale", [1e-30, 1e15, 1e19, 1e30, 3e38])
def test_pacs_of_floats_whose_squares_leave_the_range(scale):
    for n in (8, 40, 3000):
        rewards = (make_rows((20, n), torch.float64, 9).clamp(-1, 1) * scale).float()
        logprobs = make_rows((20, n), torch.float32, 10)
        expected = shfcas.pacs(rewards.double(), logprobs.double()).float()
        torch.testing.assert_close(shfcas.pacs(rewards, logprobs), expected, rtol=1e-5, atol=2e-6)


SCRIPT = """
import sys, torch, shfcas
x, y, offsets = torch.load(sys.argv[1])
results = [shfcas.build_facts()["simd"]]
for dtype in (torch.float32, torch.float64):
    a, b = x.to(dtype), y.to(dtype)
    results += [*shfcas.kendall_counts(a, b, offsets=offsets), *shfcas.conflict_scores(a, b, offsets=offsets)]
    for n in (3, 8, 16, 30, 50, 100, 150, 300, 1200):
        rows = a[: len(a) // n * n].view(-1, n), b[: len(a) // n * n].view(-1, n)
        results += [*shfcas.kendall_counts(*rows), *shfcas.conflict_scores(*rows)]
    results.append(shfcas.kendall_tau_matrix(a[:10000].view(50, 200)))
    results.append(shfcas.kendall_tau_matrix(a[:9000].view(3, 3000)))
torch.save(results, sys.argv[2])
"""


def results_with(level: str, folder: Path) -> list:
    """The instruction set that was used and all results, from a process that is asked to use one."""
    command = [sys.executable, "-c", SCRIPT, str(folder / "rows.pt"), str(folder / f"{level}.pt")]
    subprocess.run(command, check=True, env={**os.environ, "SHFCAS_SIMD": level})
    return torch.load(folder / f"{level}.pt")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory) -> tuple[Path, list]:
    """A folder with rows of many lengths, and the results of the kernels that every processor has."""
    folder = tmp_path_factory.mktemp("rows")
    lengths = [*range(40), 64, 65, 100, 150, 193, 300, 1024, 1025, 2500, 4100, 8, 8, 300, 0, 1]
    x, y, offsets = make_jagged(lengths, torch.float64, 11, 500)
    x[7] = y[9000] = torch.nan
    torch.save((x, y, offsets), folder / "rows.pt")
    return folder, results_with("baseline", folder)


@pytest.mark.parametrize("level", ["avx2", "avx512"])
def test_instruction_sets_agree(level, baseline):
    folder, (_, *expected) = baseline
    used, *results = results_with(level, folder)
    if used != level:
        pytest.skip(f"this processor has no {level}")
    for result, reference in zip(results, expected, strict=True):
        if result.dtype.is_floating_point:  # sums of a row are added up in another order
            torch.testing.assert_close(result, reference, rtol=1e-5, atol=1e-5, equal_nan=True)
        else:
            assert torch.equal(result, reference)
