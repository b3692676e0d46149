"""The CUDA kernels, unchanged, on the emulated GPU of emulation.h: every launch function beside the CPU ops."""

import ctypes
import hashlib
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import shfcas
from shfcas.ops import reference

HERE = Path(__file__).parent
SOURCES = HERE.parent.parent / "csrc"
KEPT = HERE.parent.parent / "build" / "emulation"
DTYPES = [torch.float64, torch.float32, torch.int64, torch.int32, torch.float16, torch.bfloat16]  # as kernels.cpp
NUMBERS, FLOATING = DTYPES[:4], DTYPES[:2]
LONG = ctypes.c_int64

inf, nan = float("inf"), float("nan")


class Rows(ctypes.Structure):
    _fields_ = [("count", LONG), ("total", LONG), ("length", LONG), ("offsets", ctypes.c_void_p)]


COLUMNS = ("concordant", "discordant", "tied_x", "tied_y", "tied_both", "classes")
TRIPLES = ("triples_x", "triples_y")


class KendallOutput(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in (*COLUMNS, *TRIPLES, "tau", "distance")] + [
        ("variant", ctypes.c_int),
        ("normalized", ctypes.c_bool),
    ]


def compile_kernels(sources):
    """kernels.cpp with these headers, for the emulated GPU; kept in build/ until the sources change."""
    options = ["-std=c++17", "-O1", "-fno-strict-aliasing", "-shared", "-fPIC"]
    options += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    digest = hashlib.sha256(" ".join(options).encode())
    for folder in (HERE, sources):
        for path in sorted(path for path in folder.rglob("*") if path.suffix in (".h", ".cuh", ".cpp")):
            digest.update(f"\0{path.relative_to(folder)}\0".encode() + path.read_bytes())
    library = KEPT / f"kernels-{digest.hexdigest()[:16]}.so"
    KEPT.mkdir(parents=True, exist_ok=True)
    with FileLock(KEPT / "lock"):
        if not library.exists():
            part = library.with_suffix(".part")
            command = ["c++", *options, f"-I{sources}", f"-I{HERE}", str(HERE / "kernels.cpp"), "-o", str(part)]
            subprocess.run(command, check=True)
            part.rename(library)
    loaded = ctypes.CDLL(str(library))
    for name in ("kendall_scratch", "matrix_scratch"):
        getattr(loaded, name).restype = LONG
    return loaded


@pytest.fixture(scope="session")
def library():
    return compile_kernels(SOURCES)


# Every schedule is another order of the threads.
@pytest.fixture(params=[1, pytest.param(2, marks=pytest.mark.system)], ids=lambda seed: f"schedule{seed}")
def gpu(library, request):
    """A function that calls a C function with tensors for pointers."""
    return caller(library, request.param)


def caller(library, seed):
    def call(name, *arguments):
        function = getattr(library, name)
        function.restype = ctypes.c_char_p
        library.seed(seed)
        message = function(*map(to_c, arguments))
        assert message == b"", message.decode()

    call.library = library
    return call


def to_c(argument):
    if isinstance(argument, torch.Tensor):
        assert argument.is_contiguous()
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, ctypes.Structure):
        return ctypes.byref(argument)
    if isinstance(argument, torch.dtype):
        return DTYPES.index(argument)
    return LONG(argument) if isinstance(argument, int) else argument


def rows_of(x, offsets=None):
    if offsets is None:
        return Rows(x.shape[:-1].numel(), x.numel(), x.shape[-1], None)
    return Rows(offsets.numel() - 1, x.numel(), 0, offsets.data_ptr())


def values(shape, dtype, seed, distinct=None):
    generator = torch.Generator().manual_seed(seed)
    if distinct or not dtype.is_floating_point:
        return torch.randint(0, distinct or 10**6, shape, generator=generator).to(dtype)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


# Pair counts.


def kendall(gpu, x, y, offsets=None, **options):
    """Every output of launch_kendall by name; options leave out statistics or set the variant."""
    rows = rows_of(x, offsets)
    results = {name: torch.full((rows.count,), -7) for name in COLUMNS}
    results |= {name: torch.full((rows.count,), -7.0).double() for name in (*TRIPLES, "tau", "distance")}
    wanted = set(results) - (set() if options.get("groups") else {"classes", *TRIPLES})
    output = KendallOutput(**{name: results[name].data_ptr() for name in wanted})
    output.variant, output.normalized = "abc".index(options.get("variant", "b")), options.get("normalized", True)
    scratch = torch.full((gpu.library.kendall_scratch(to_c(x.dtype), to_c(rows)),), 0x5A, dtype=torch.uint8)
    gpu("kendall", x.dtype, rows, x, y, scratch, output)
    return results


def groups(row):
    """Distinct values and sum of t (t - 1) (t - 2) of a row."""
    sizes = torch.unique(row, return_counts=True)[1].double()
    return len(sizes), float((sizes * (sizes - 1) * (sizes - 2)).sum())


def check_kendall(gpu, x, y, offsets=None):
    """All statistics against the CPU ops, and the groups against torch.unique."""
    counts = shfcas.kendall_counts(x, y, offsets=offsets)
    for with_groups, variant, normalized in ((False, "b", True), (True, "c", False)):
        result = kendall(gpu, x, y, offsets, groups=with_groups, variant=variant, normalized=normalized)
        for name in counts._fields:
            equal(result[name], getattr(counts, name).reshape(-1))
        distance = shfcas.kendall_distance(x, y, normalized=normalized, offsets=offsets)
        equal(result["distance"], distance.reshape(-1))
        close(result["tau"], shfcas.kendall_tau(x, y, variant=variant, offsets=offsets).reshape(-1), 1e-12)
    rows = list(zip(x, y, strict=True))
    if offsets is not None:
        rows = [(x[a:b], y[a:b]) for a, b in pairwise(offsets.tolist())]
    for i, (x_row, y_row) in enumerate(rows):
        if x_row.isnan().any() or y_row.isnan().any():
            expected = (0, nan, nan)
        else:
            (classes_x, triples_x), (classes_y, triples_y) = groups(x_row), groups(y_row)
            expected = (min(classes_x, classes_y), triples_x, triples_y)
        found = [result[name][i].item() for name in ("classes", *TRIPLES)]
        assert found == pytest.approx(expected, rel=1e-14, nan_ok=True)


# Around every border: threads (8, 16), half warps (64), blocks (256), tiles of the sort (1024).
LENGTHS = [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 130, 255, 256, 257, 600, 1023, 1024]
LONG_LENGTHS = [1025, 2047, 2049, 3333, 5000]


@pytest.mark.parametrize("n", LENGTHS)
def test_counts_of_dense_rows(gpu, n):
    for dtype in NUMBERS if n < 100 else [torch.float32, torch.int64]:
        count = 70 if n <= 16 else 9 if n < 100 else 2
        for distinct in (None, 3):
            x, y = values((count, n), dtype, 0, distinct), values((count, n), dtype, 1, distinct)
            if n > 2 and dtype.is_floating_point:
                x[0, n // 2] = nan
                y[1, -1] = nan
                x[-1, :3] = torch.tensor([-0.0, 0.0, inf])
                y[-1, -2:] = torch.tensor([-inf, -inf])
            check_kendall(gpu, x, y)


@pytest.mark.parametrize(("n", "dtype"), list(zip(LONG_LENGTHS, [*NUMBERS, torch.float32], strict=True)))
def test_counts_of_long_dense_rows(gpu, n, dtype):
    x, y = values((4, n), dtype, 2), values((4, n), dtype, 3)
    x[1], y[1] = x[1] * 0 + 4, x[1] * 0  # constant
    x[2], y[2] = values((n,), dtype, 4, 7), values((n,), dtype, 5, 40)
    y[3] = -x[3]
    if dtype.is_floating_point:
        x[0, -1] = nan
        x[2, ::9], x[2, 1::9], y[2, ::5] = -0.0, inf, -inf
    check_kendall(gpu, x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_counts_of_one_huge_row(gpu, dtype):
    """On both sides of the length from which a row is sorted by radix, and as one of several."""
    for shape in ((1, 4999), (1, 5001), (2, 5001)):
        x, y = values(shape, dtype, 6, 900), values(shape, dtype, 7)
        x[..., 1], y[..., 5] = -3, -7
        check_kendall(gpu, x, y)


def test_counts_of_sorted_rows(gpu):
    x = torch.arange(4100).repeat(2, 1)
    check_kendall(gpu, x, torch.stack([x[0], -x[0]]))


def jagged(lengths, dtype, seed, distinct=None):
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    total = int(offsets[-1])
    return values((total,), dtype, seed, distinct), values((total,), dtype, seed + 1, distinct), offsets


@pytest.mark.parametrize("dtype", NUMBERS)
def test_counts_of_jagged_rows(gpu, dtype):
    lengths = [0, 5, 1, 17, 16, 0, 64, 65, 3, 1300, 8, 2, 2100, 40, 0]
    for distinct in (None, 5):
        x, y, offsets = jagged(lengths, dtype, 6, distinct)
        if dtype.is_floating_point:
            x[3] = nan  # in the row of 5
            y[600] = nan  # in the row of 1300
        check_kendall(gpu, x, y, offsets)


def test_counts_of_many_short_jagged_rows(gpu):
    x, y, offsets = jagged([(7 * i) % 19 for i in range(150)], torch.float32, 8, 6)
    check_kendall(gpu, x, y, offsets)
    check_kendall(gpu, x[:0], y[:0], torch.zeros(5, dtype=torch.int64))
    check_kendall(gpu, x[:0], y[:0], torch.zeros(1, dtype=torch.int64))


def test_unaligned_values(gpu):
    x, y = values((401,), torch.float32, 9)[1:].reshape(50, 8), values((401,), torch.float32, 10)[1:].reshape(50, 8)
    assert x.data_ptr() % 16 != 0
    check_kendall(gpu, x, y)


@pytest.mark.parametrize("offsets", [[0, 40, 20, 3000], [0, 10**15], [-5, 2000], [3000, 1], [7, 2500, 1, 2700]])
def test_bad_offsets_stay_inside(gpu, offsets):
    """Guard bands around every array stay as they were; what the rows get does not matter."""
    total, band = 3000, 4096
    offsets = torch.tensor(offsets)
    x, y = values((total,), torch.float32, 11), values((total,), torch.float32, 12)
    rows = rows_of(x, offsets)
    size = gpu.library.kendall_scratch(to_c(x.dtype), to_c(rows))
    scratch = torch.full((size + 2 * band,), 0x5A, dtype=torch.uint8)
    scores = torch.full((total + 2 * band,), 7.0)
    result = torch.full((3, rows.count + 2 * band), 7.0, dtype=torch.float64)
    middle = slice(band, band + rows.count)
    mean_abs, degenerate = torch.zeros(rows.count), torch.zeros(rows.count, dtype=torch.bool)
    gpu(
        *("conflict_scores", x.dtype, rows, x, y, scores[band:], mean_abs, degenerate),
        *(result[0, middle], result[1, middle], scratch[band:]),
    )
    for array, length, untouched in ((scratch, size, 0x5A), (scores, total, 7), (result[0], rows.count, 7)):
        assert (array[:band] == untouched).all()
        assert (array[band + length :] == untouched).all()


@pytest.mark.parametrize("offsets", [[5, 20, 90], [0, 300], [300, 300], [400], [7, 100, 100, 399]])
def test_values_of_no_row_get_nan(gpu, offsets):
    x, y, offsets = values((400,), torch.float32, 30), values((400,), torch.float32, 31), torch.tensor(offsets)
    first, last = offsets[0], offsets[-1]
    inside = shfcas.pacs(x[first:last], y[first:last], offsets=offsets - first)
    expected = torch.full((400,), nan)
    expected[first:last] = inside
    scores, *gradients = (torch.full((400,), 7.0) for _ in range(3))
    gpu("pacs", x.dtype, rows_of(x, offsets), x, y, scores)
    close(scores, expected, 1e-5)
    close(conflict_scores(gpu, x, y, offsets).pacs, expected, 1e-5)
    gpu("pacs_gradient", x.dtype, rows_of(x, offsets), x, x, y, *gradients)
    for gradient in gradients:
        equal(gradient.isnan(), expected.isnan())


# Scores.


def conflict_scores(gpu, rewards, logprobs, offsets=None):
    rows, shape = rows_of(rewards, offsets), (rows_of(rewards, offsets).count,)
    dtype = rewards.dtype
    scores, mean_abs = torch.full_like(rewards, 7), torch.full(shape, 7, dtype=dtype)
    distance, tau = torch.full(shape, 7.0).double(), torch.full(shape, 7.0).double()
    degenerate = torch.zeros(shape, dtype=torch.bool)
    scratch = torch.full((gpu.library.kendall_scratch(to_c(dtype), to_c(rows)),), 0x5A, dtype=torch.uint8)
    gpu("conflict_scores", dtype, rows, rewards, logprobs, scores, mean_abs, degenerate, distance, tau, scratch)
    return shfcas.ConflictScores(scores, mean_abs, distance, tau, degenerate)


def check_scores(gpu, rewards, logprobs, offsets=None):
    rows, dtype = rows_of(rewards, offsets), rewards.dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    expected = shfcas.conflict_scores(rewards, logprobs, offsets=offsets)
    result = conflict_scores(gpu, rewards, logprobs, offsets)
    for name in ("pacs", "mean_abs_pacs", "kendall_tau_b"):
        close(getattr(result, name), getattr(expected, name).reshape(getattr(result, name).shape), tolerance)
    equal(result.kendall_distance, expected.kendall_distance.reshape(-1))
    equal(result.degenerate, expected.degenerate.reshape(-1))

    scores = torch.full_like(rewards, 7)
    gpu("pacs", dtype, rows, rewards, logprobs, scores)
    equal(scores, result.pacs)

    gradient = values(rewards.shape, dtype, 20)
    expected = torch.ops.shfcas.pacs_backward(gradient, rewards, logprobs, offsets)
    result = torch.full_like(rewards, 7), torch.full_like(rewards, 7)
    gpu("pacs_gradient", dtype, rows, gradient, rewards, logprobs, *result)
    for one, other in zip(result, expected, strict=True):
        close(one, other, tolerance)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 9, 16, 17, 64, 65, 200, 1024, 1500])
def test_scores_of_dense_rows(gpu, n):
    for dtype in FLOATING:
        count = 70 if n <= 16 else 9
        rewards, logprobs = values((count, n), dtype, 13), values((count, n), dtype, 14) * 20 - 300
        if n > 0:
            rewards[3, 0], rewards[6, -1] = nan, inf
            logprobs[5] = -7.3
            rewards[4] = 1 + values((n,), dtype, 15) * 1e-8
        check_scores(gpu, rewards, logprobs)


@pytest.mark.parametrize("dtype", FLOATING)
def test_scores_of_jagged_rows(gpu, dtype):
    check_scores(gpu, *jagged([0, 5, 1, 17, 16, 0, 64, 65, 3, 1300, 8, 2, 40, 0], dtype, 16))
    check_scores(gpu, *jagged([(7 * i) % 19 for i in range(100)], dtype, 17))


# Matrices.


@pytest.mark.parametrize(("m", "n"), [(0, 5), (3, 0), (3, 1), (5, 2), (4, 3), (7, 33), (70, 64), (9, 150), (2, 8193)])
def test_matrices(gpu, m, n):
    for dtype in NUMBERS if n < 60 else [torch.float32]:
        x = values((m, n), dtype, 18, None if n % 2 else 4)
        if m > 2 and n > 2 and dtype.is_floating_point:
            x[0] = 1.5
            x[1, n // 2] = nan
            x[2, 0], x[2, 1] = -0.0, 0.0
        left, right = x.repeat_interleave(m, 0), x.repeat(m, 1)
        for variant in ("a", "b", "c", None) if n < 60 else ("c", None):
            result = torch.full((m, m), 7.0, dtype=torch.float64)
            scratch = torch.full((gpu.library.matrix_scratch(to_c(dtype), LONG(m), LONG(n)),), 0x5A, dtype=torch.uint8)
            gpu("matrix", dtype, x, m, n, -1 if variant is None else "abc".index(variant), result, scratch)
            if variant is None:
                equal(result, shfcas.kendall_distance(left, right).reshape(m, m))
            else:
                close(result, shfcas.kendall_tau(left, right, variant=variant).reshape(m, m), 1e-12)


def test_matrices_of_many_words(gpu):
    """Several ranges of words, with ties in some of them only."""
    x = values((3, 300), torch.float32, 19)
    x[1, 40:43] = 0.5
    result = torch.full((3, 3), 7.0, dtype=torch.float64)
    scratch = torch.zeros(gpu.library.matrix_scratch(to_c(x.dtype), LONG(3), LONG(300)), dtype=torch.uint8)
    gpu("matrix", x.dtype, x, 3, 300, 1, result, scratch)
    close(result, reference.kendall_tau(x.repeat_interleave(3, 0), x.repeat(3, 1)).reshape(3, 3), 1e-12)


# Log-probabilities.


def oracle_statistics(logits, labels, mask, temperature):
    """Log-probabilities and entropies in double, differentiable, without looking at labels that do not count."""
    log_softmax = (logits.double() / temperature).log_softmax(-1)
    chosen = log_softmax.gather(-1, labels.where(mask, 0).unsqueeze(-1)).squeeze(-1)
    entropy = -(log_softmax.exp() * log_softmax.masked_fill(log_softmax == -inf, 0)).sum(-1)
    return chosen.where(mask, 0.0), entropy.where(mask, 0.0)


def token_statistics(gpu, logits, labels, mask, temperature, with_entropy):
    """Sums, log-probabilities, entropies and normalizers from the kernels, and a function for the gradient."""
    b, t, _ = logits.shape
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    arguments = (
        ctypes.c_void_p(logits.data_ptr()),
        labels,
        mask,
        torch.tensor(logits.shape),
        torch.tensor(logits.stride()),
        torch.tensor(temperature, dtype=torch.float64),
    )
    exact, sums = torch.full((b, t), 7.0, dtype=torch.float64), torch.full((b,), 7.0, dtype=wide)
    logprobs, normalizer = torch.full((b, t), 7.0, dtype=wide), torch.full((b, t, 2), 7.0, dtype=torch.float64)
    entropy = torch.full((b, t), 7.0, dtype=wide) if with_entropy else None
    gpu("token_statistics", logits.dtype, *arguments, exact, sums, logprobs, entropy, normalizer)

    def gradient(of_logprobs, of_entropy):
        result = torch.full(logits.shape, 7.0).to(logits.dtype)
        saved = None if entropy is None else entropy.double()
        gpu("token_gradients", logits.dtype, of_logprobs, of_entropy, *arguments, saved, normalizer, result)
        return result

    return sums, logprobs, entropy, gradient


@pytest.mark.parametrize("vocabulary", [1, 2, 5, 8, 37, 300, 2600])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_token_statistics(gpu, dtype, vocabulary):
    b, t = 3, 4
    # Every alignment of a row; strides as of a slice.
    storage = values((b, t + 1, vocabulary), torch.float64, 21).mul(4).to(dtype)
    logits = storage[:, 1:]
    labels = values((b, t), torch.int64, 22) % vocabulary
    mask = values((b, t), torch.int64, 23) % 3 > 0
    labels[~mask] = -100
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    tolerance_here = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, tolerance)
    gradients = values((b, t), torch.float64, 24), values((b, t), torch.float64, 25)

    for this_mask, this_labels, temperature in ((mask, labels, 1.0), (None, labels.clamp(min=0), 0.7)):
        counted = torch.ones_like(mask) if this_mask is None else this_mask
        for with_entropy in (False, True):
            leaf = logits.double().clone().requires_grad_()
            expected = oracle_statistics(leaf, this_labels, counted, temperature)
            sums, logprobs, entropy, gradient = token_statistics(
                gpu, logits, this_labels, this_mask, temperature, with_entropy
            )
            close(logprobs.double(), expected[0].detach(), tolerance)
            close(sums.double(), expected[0].detach().sum(-1), tolerance)
            if with_entropy:
                close(entropy.double(), expected[1].detach(), tolerance)
            weights = gradients if with_entropy else (gradients[0], None)
            sum((w * e).sum() for w, e in zip(weights, expected, strict=True) if w is not None).backward()
            result = gradient(*weights)
            close(result.double(), leaf.grad, tolerance_here)
            assert (result[~counted] == 0).all()


def test_special_logits(gpu):
    """Infinities, NaN and labels outside, each in a sequence of its own."""
    logits = values((6, 2, 40), torch.float32, 25)
    labels = torch.full((6, 2), 3)
    logits[0, 0, 5:] = -inf  # fine
    logits[1, 0, 3] = -inf  # -inf
    logits[2, 0, 9] = nan
    logits[3, 0, 9] = inf
    logits[4, 0] = -inf
    labels[5, 1] = 40
    every = torch.ones(6, 2, dtype=torch.bool)
    expected, spread = oracle_statistics(logits, labels.clamp(max=39), every, 1.0)
    expected[5, 1] = nan
    sums, logprobs, entropy, gradient = token_statistics(gpu, logits, labels, None, 1.0, True)
    close(logprobs, expected.float(), 1e-5)
    close(sums, expected.sum(-1).float(), 1e-5)
    close(entropy, spread.float(), 1e-5)

    leaf = logits.double().requires_grad_()
    oracle_statistics(leaf, labels.clamp(max=39), every, 1.0)[0].sum().backward()
    leaf.grad[5, 1] = nan
    close(gradient(torch.ones(6, 2).double(), None).double(), leaf.grad, 1e-5)


def test_no_positions(gpu):
    logits, labels = torch.empty(2, 0, 4), torch.empty(2, 0, dtype=torch.int64)
    assert (token_statistics(gpu, logits, labels, None, 1.0, False)[0] == 0).all()


# The emulated GPU itself.


def test_a_missing_barrier_shows(library):
    library.reverse.restype = library.rotate.restype = ctypes.c_char_p
    for function, size in ((library.reverse, 256), (library.rotate, 32)):
        for with_barrier in (True, False):
            wrong = 0
            for seed in range(10):
                library.seed(seed)
                before = torch.arange(size)
                after = before.clone()
                assert function(to_c(after), ctypes.c_bool(with_barrier)) == b""
                expected = before.flip(0) if size == 256 else before.reshape(2, 16).roll(-1, 1).reshape(-1)
                wrong += not torch.equal(after, expected)
            assert wrong == (0 if with_barrier else 10)


def test_a_barrier_missing_from_the_kernels_shows(tmp_path):
    shutil.copytree(SOURCES, tmp_path / "csrc")
    header = tmp_path / "csrc/cuda/count_pairs.cuh"
    barrier = "  team.sync();\n"
    assert header.read_text().count(barrier) == 1
    header.write_text(header.read_text().replace(barrier, ""))
    gpu = caller(compile_kernels(tmp_path / "csrc"), 1)
    for n in (40, 200):
        x, y = values((9, n), torch.float32, 0), values((9, n), torch.float32, 1)
        with pytest.raises(AssertionError, match="not equal"):
            check_kendall(gpu, x, y)


@pytest.mark.parametrize(
    ("how", "message"),
    [(0, b"barrier that some threads"), (1, b"warp instruction that some lanes"), (2, b"write past shared memory")],
)
def test_misbehaviour_is_refused(library, how, message):
    library.misbehave.restype = ctypes.c_char_p
    assert message in library.misbehave(how)
