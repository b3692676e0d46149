"""The ops on a GPU beside the same ops on the CPU."""

import pytest
import torch
from rows import FLOATING, INTEGER, SIZES, assert_all_equal, make_jagged, make_rows

import shfcas

pytestmark = [
    pytest.mark.needs_cuda,
    pytest.mark.skipif(not shfcas.build_facts()["cuda"], reason="built without CUDA"),
]

inf, nan = float("inf"), float("nan")
NUMBERS = [torch.float64, torch.float32, torch.int64, torch.int32]
# Around every change of kernel, and of the tiles of a sort.
LONG_SIZES = (256, 257, 1023, 1024, 1025, 2048, 3000)


def on_gpu(function, *arguments, **options):
    """The result of a function on the GPU, brought back."""
    moved = {name: o.cuda() if isinstance(o, torch.Tensor) else o for name, o in options.items()}
    result = function(*(a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments), **moved)
    return [part.cpu() for part in result] if isinstance(result, tuple) else [result.cpu()]


def close(actual, expected, dtype):
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def with_special_values(x, y):
    """NaN, infinities and zeros of both signs in some rows, a constant row."""
    n = x.shape[-1]
    if n > 2 and x.dtype.is_floating_point:
        x[0, n // 2], y[1, -1] = nan, nan
        x[2, :3] = torch.tensor([-0.0, 0.0, inf], dtype=x.dtype)
        y[2, -2:] = -inf
        x[3] = 1.5
    return x, y


# Pair counts.


@pytest.mark.parametrize("distinct", [None, 3])
@pytest.mark.parametrize("n", [*SIZES, *LONG_SIZES])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_kendall_equals_cpu(dtype, n, distinct):
    x, y = with_special_values(make_rows((150, n), dtype, 0, distinct), make_rows((150, n), dtype, 1, distinct))
    assert_all_equal(on_gpu(shfcas.kendall_counts, x, y), shfcas.kendall_counts(x, y))
    for variant in ("a", "b", "c"):
        result = on_gpu(shfcas.kendall_tau, x, y, variant=variant)[0]
        close(result, shfcas.kendall_tau(x, y, variant=variant), torch.float64)
    for normalized in (True, False):
        expected = shfcas.kendall_distance(x, y, normalized=normalized)
        assert_all_equal(on_gpu(shfcas.kendall_distance, x, y, normalized=normalized), [expected])


@pytest.mark.parametrize("dtype", [*FLOATING, *INTEGER])
def test_every_dtype(dtype):
    x, y = make_rows((9, 21), dtype, 2, 5).t(), make_rows((9, 21), dtype, 3, 5).t()
    assert_all_equal(on_gpu(shfcas.kendall_counts, x, y), shfcas.kendall_counts(x, y))


def groups(row):
    """Distinct values and sum of t (t - 1) (t - 2) of a row."""
    sizes = torch.unique(row, return_counts=True)[1].double()
    return len(sizes), float((sizes * (sizes - 1) * (sizes - 2)).sum())


@pytest.mark.parametrize("n", [0, 1, 2, 8, 17, 64, 65, 1024, 1025, 3000])
@pytest.mark.parametrize("distinct", [None, 3, 50])
def test_statistics(n, distinct):
    x, y = make_rows((5, n), torch.float32, 4, distinct), make_rows((5, n), torch.float32, 5, distinct)
    if n > 2:
        x[1, 0] = nan
    *counts, classes, triples_x, triples_y = on_gpu(torch.ops.shfcas.kendall_statistics, x, y)
    assert_all_equal(counts, shfcas.kendall_counts(x, y))
    for i in range(5):
        (classes_x, expected_x), (classes_y, expected_y) = groups(x[i]), groups(y[i])
        expected = (min(classes_x, classes_y), expected_x, expected_y)
        if x[i].isnan().any():
            expected = (0, nan, nan)
        found = classes[i].item(), triples_x[i].item(), triples_y[i].item()
        assert found == pytest.approx(expected, rel=1e-14, nan_ok=True)


@pytest.mark.parametrize("distinct", [None, 30, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_one_huge_row_equals_cpu(dtype, distinct):
    x, y = make_rows((1_000_003,), dtype, 6, distinct), make_rows((1_000_003,), dtype, 7, distinct)
    assert_all_equal(on_gpu(shfcas.kendall_counts, x, y), shfcas.kendall_counts(x, y))


def test_more_long_rows_than_are_sorted_at_once():
    x, y = make_rows((9000, 2000), torch.float32, 8), make_rows((9000, 2000), torch.float32, 9)
    assert_all_equal(on_gpu(shfcas.kendall_distance, x, y), [shfcas.kendall_distance(x, y)])


@pytest.mark.parametrize("dtype", NUMBERS)
def test_jagged_kendall_equals_cpu(dtype):
    for lengths in ([*SIZES, 300, *SIZES], [*SIZES, 1024, 1025, 0, 70_000, *SIZES], [0, 0], []):
        x, y, offsets = make_jagged(lengths, dtype, 10, 9)
        expected = shfcas.kendall_counts(x, y, offsets=offsets)
        assert_all_equal(on_gpu(shfcas.kendall_counts, x, y, offsets=offsets), expected)
        result = on_gpu(shfcas.kendall_tau, x, y, variant="c", offsets=offsets)[0]
        close(result, shfcas.kendall_tau(x, y, variant="c", offsets=offsets), torch.float64)


@pytest.mark.parametrize("n", [8, 16, 40, 200, 1300])
def test_misaligned_views_equal_cpu(n):
    """Values that begin one element behind an address of a whole vector."""
    for dtype in (torch.float32, torch.float64):
        x, y = make_rows((30 * n + 1,), dtype, 28).cuda()[1:], make_rows((30 * n + 1,), dtype, 29).cuda()[1:]
        assert x.data_ptr() % 16
        rows = x.reshape(30, n), y.reshape(30, n)
        offsets = torch.arange(0, 30 * n + 1, n, device="cuda")
        expected = shfcas.conflict_scores(*(part.cpu() for part in rows))
        for result in (shfcas.conflict_scores(*rows), shfcas.conflict_scores(x, y, offsets=offsets)):
            for one, other in zip(result, expected, strict=True):
                close(one.cpu().reshape(other.shape), other, dtype)


def test_very_many_jagged_rows_with_few_long_ones():
    lengths = [i % 23 for i in range(80_000)]
    lengths[123], lengths[70_001] = 100, 5000
    x, y, offsets = make_jagged(lengths, torch.float32, 12)
    expected = shfcas.kendall_counts(x, y, offsets=offsets)
    assert_all_equal(on_gpu(shfcas.kendall_counts, x, y, offsets=offsets), expected)


@pytest.mark.slow
def test_more_than_two_to_the_31_values():
    rows = 2**28 + 5  # of 8 values, and more than one grid of blocks
    if torch.cuda.get_device_properties(0).total_memory < 40e9:
        pytest.skip("needs 40 GB of GPU memory")
    x = torch.rand(rows, 8, device="cuda")
    y = torch.rand(rows, 8, device="cuda")
    result = shfcas.kendall_distance(x, y)
    for part in (slice(0, 1000), slice(2**27 - 500, 2**27 + 500), slice(rows - 1000, rows)):
        assert_all_equal([result[part].cpu()], [shfcas.kendall_distance(x[part].cpu(), y[part].cpu())])


# Scores.


@pytest.mark.parametrize("n", [*SIZES, *LONG_SIZES])
@pytest.mark.parametrize("dtype", FLOATING)
def test_scores_close_to_cpu(dtype, n):
    rewards, logprobs = make_rows((70, n), dtype, 14), make_rows((70, n), dtype, 15) * 20 - 300
    if n > 0:
        rewards[3, 0], rewards[6, 0] = nan, inf
        logprobs[5] = -7
        rewards[4] = 1 + make_rows((n,), torch.float64, 16) * 1e-8
    expected = shfcas.conflict_scores(rewards, logprobs)
    result = shfcas.ConflictScores(*on_gpu(shfcas.conflict_scores, rewards, logprobs))
    for name in ("pacs", "mean_abs_pacs", "kendall_tau_b"):
        close(getattr(result, name), getattr(expected, name), dtype)
    assert_all_equal(
        [result.kendall_distance, result.degenerate],
        [expected.kendall_distance, expected.degenerate],
    )
    assert_all_equal(on_gpu(shfcas.pacs, rewards, logprobs), [result.pacs])

    gradient = make_rows((70, n), dtype, 17)
    expected = torch.ops.shfcas.pacs_backward(gradient, rewards, logprobs)
    for one, other in zip(on_gpu(torch.ops.shfcas.pacs_backward, gradient, rewards, logprobs), expected, strict=True):
        close(one, other, dtype)


def test_jagged_scores_close_to_cpu():
    rewards, logprobs, offsets = make_jagged([*SIZES, 1300, *SIZES], torch.float32, 18)
    expected = shfcas.conflict_scores(rewards, logprobs, offsets=offsets)
    result = on_gpu(shfcas.conflict_scores, rewards, logprobs, offsets=offsets)
    for one, other in zip(result, expected, strict=True):
        close(one, other, torch.float32)


@pytest.mark.parametrize("n", [9, 30, 100])
def test_gradient(n):
    rewards, logprobs = (make_rows((3, n), torch.float64, seed).cuda().requires_grad_() for seed in (7, 8))
    assert torch.autograd.gradcheck(shfcas.pacs, (rewards, logprobs))


# Matrices.


@pytest.mark.parametrize(
    ("m", "n"), [(0, 4), (3, 0), (3, 1), (3, 2), (5, 33), (70, 64), (130, 201), (9, 3000), (3, 9000)]
)
@pytest.mark.parametrize("distinct", [None, 6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_matrices_equal_rows_of_pairs(dtype, m, n, distinct):
    x = make_rows((m, n), dtype, 20, distinct)
    if m > 2 and n > 2 and dtype.is_floating_point:
        x[1, n // 2], x[2] = nan, 1.5
    left, right = x.repeat_interleave(m, 0), x.repeat(m, 1)
    for variant in ("a", "b", "c"):
        expected = shfcas.kendall_tau(left, right, variant=variant).reshape(m, m)
        close(on_gpu(torch.ops.shfcas.kendall_tau_matrix, x, variant)[0], expected, torch.float64)
    expected = shfcas.kendall_distance(left, right).reshape(m, m)
    assert_all_equal(on_gpu(torch.ops.shfcas.kendall_distance_matrix, x), [expected])


def test_a_matrix_of_more_words_than_at_once():
    x = make_rows((300, 3000), torch.float32, 21)
    x[7] = x[7].round()
    result = on_gpu(torch.ops.shfcas.kendall_tau_matrix, x)[0]
    for i in (0, 7, 299):
        close(result[i], shfcas.kendall_tau(x[i].expand_as(x), x), torch.float64)


# Log-probabilities.


def oracle_logprobs(logits, labels, mask):
    """In double, differentiable, without looking at labels that do not count."""
    chosen = logits.double().log_softmax(-1).gather(-1, labels.where(mask, 0).unsqueeze(-1)).squeeze(-1)
    return chosen.where(mask, 0.0).sum(-1)


@pytest.mark.parametrize("vocabulary", [1, 7, 8, 1000, 32_003])
@pytest.mark.parametrize("dtype", FLOATING)
def test_sequence_logprobs(dtype, vocabulary):
    logits = make_rows((3, 6, vocabulary), dtype, 22)[:, 1:] * 4
    labels = make_rows((3, 5), torch.int64, 23, vocabulary)
    mask = make_rows((3, 5), torch.int64, 24, 3) > 0
    labels[~mask] = -100
    leaf = logits.double().clone().requires_grad_()
    expected = oracle_logprobs(leaf, labels, mask)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    result = on_gpu(torch.ops.shfcas.sequence_logprobs, logits, labels, mask)[0]
    assert result.dtype == wide
    close(result, expected.detach().to(wide), dtype)

    gradient = make_rows((3,), wide, 25)
    expected.backward(gradient.double())
    on_device = logits.cuda().requires_grad_()
    shfcas.sequence_logprobs(on_device, labels.cuda(), mask.cuda()).backward(gradient.cuda())
    result = on_device.grad.cpu()
    assert result.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(result.double(), leaf.grad, rtol=tolerance, atol=tolerance)
    assert (result[~mask] == 0).all()


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("dtype", FLOATING)
def test_token_logprobs_equal_cpu(dtype, entropy):
    logits = make_rows((3, 6, 1003), dtype, 22)[:, 1:] * 4
    labels, mask = make_rows((3, 5), torch.int64, 23, 1003), make_rows((3, 5), torch.int64, 24, 3) > 0
    hidden, weight = make_rows((3, 5, 16), dtype, 25), make_rows((5003, 16), dtype, 26)
    results = []
    for device in ("cpu", "cuda"):
        leaves = [part.to(device).requires_grad_() for part in (logits, hidden, weight)]
        tokens, options = labels.to(device), {"temperature": 0.7, "entropy": entropy}
        result = [
            shfcas.token_logprobs(leaves[0], tokens, mask.to(device), **options),
            shfcas.linear_token_logprobs(leaves[1], leaves[2], tokens, **options),
        ]
        result = [part for each in result for part in (each if entropy else (each,))]
        sum(part.square().sum() for part in result).backward()
        results.append([part.detach().cpu() for part in (*result, *(leaf.grad for leaf in leaves))])
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


def test_logits_are_read_through_their_strides():
    storage = torch.randn(5, 4, 5000, device="cuda")
    labels = torch.randint(0, 5000, (4, 5), device="cuda")
    mask = torch.ones_like(labels, dtype=torch.bool)
    for logits in (storage.transpose(0, 1), torch.randn(4, 5000, 5, device="cuda").transpose(1, 2)):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = torch.ops.shfcas.sequence_logprobs(logits, labels)
        if logits.stride(2) == 1:
            assert torch.cuda.max_memory_allocated() - before < logits.nbytes // 50
        close(result, oracle_logprobs(logits, labels, mask).float(), torch.float32)


def test_a_label_outside_makes_its_sequence_nan():
    logits = torch.randn(3, 4, 10, device="cuda")
    labels = torch.zeros(3, 4, dtype=torch.int64, device="cuda")
    labels[1, 2], labels[2, 0] = 10, -100
    assert torch.ops.shfcas.sequence_logprobs(logits, labels).isnan().tolist() == [False, True, True]


# What callers rely on: streams, graphs, bad input.


@pytest.mark.parametrize("offsets", [[0, 4, 2, 6], [0, 1000], [-5, 6], [3, 1], [0, -(2**63), 6]])
@pytest.mark.parametrize("scale", [1, 1000])
def test_bad_offsets_stay_inside_the_values(offsets, scale):
    offsets = torch.tensor(offsets, device="cuda") * (scale if abs(offsets[1]) < 2**60 else 1)
    x = torch.rand(6 * scale, device="cuda")
    shfcas.conflict_scores(x, x, offsets=offsets)
    shfcas.kendall_tau(x, x, variant="c", offsets=offsets)
    torch.ops.shfcas.pacs_backward(x, x, x, offsets)
    torch.cuda.synchronize()


def test_values_of_no_row_get_nan():
    x, y = torch.randn(400, device="cuda"), torch.randn(400, device="cuda")
    result = shfcas.pacs(x, y, offsets=torch.tensor([7, 100, 390], device="cuda"))
    assert result.isnan().nonzero().squeeze(-1).tolist() == [*range(7), *range(390, 400)]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second device")
def test_a_device_that_is_not_the_current_one():
    x, y = make_rows((50, 300), torch.float32, 11), make_rows((50, 300), torch.float32, 12)
    expected = shfcas.conflict_scores(x, y)
    assert torch.cuda.current_device() == 0
    result = shfcas.conflict_scores(x.to("cuda:1"), y.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    for one, other in zip(result, expected, strict=True):
        assert one.device == torch.device("cuda:1")
        close(one.cpu(), other, torch.float32)


def test_current_stream_is_used():
    x, y = make_rows((1000, 64), torch.float32, 9).cuda(), make_rows((1000, 64), torch.float32, 10).cuda()
    expected = shfcas.kendall_distance(x, y)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        later = -x
        result = shfcas.kendall_distance(-later, y)
    stream.synchronize()
    assert_all_equal([result], [expected])


ops = torch.ops.shfcas
GRAPHS = {  # function of x, y, offsets and labels; shape of x and y
    **{f"counts-{n}": (lambda x, y, *_: shfcas.kendall_counts(x, y), (50, n)) for n in (8, 40, 500, 3000)},
    **{f"scores-{n}": (lambda x, y, *_: shfcas.conflict_scores(x, y), (50, n)) for n in (8, 40, 500, 3000)},
    "counts-radix": (lambda x, y, *_: shfcas.kendall_counts(x, y), (2**18 + 1,)),
    "jagged": (lambda x, y, offsets, _: shfcas.conflict_scores(x, y, offsets=offsets), (4000,)),
    "statistics": (lambda x, y, *_: ops.kendall_statistics(x, y), (50, 70)),
    "tau_matrix": (lambda x, y, *_: (ops.kendall_tau_matrix(x),), (50, 70)),
    "distance_matrix": (lambda x, y, *_: (ops.kendall_distance_matrix(y),), (3, 9000)),
    "logprobs": (lambda x, y, _, labels: (ops.sequence_logprobs(x, labels),), (4, 5, 100)),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_replay_with_new_values(name):
    function, shape = GRAPHS[name]
    x, y = torch.randn(shape, device="cuda"), torch.randn(shape, device="cuda")
    offsets = torch.tensor([0, 3, 3, 40, 500, 4000], device="cuda")
    labels = torch.arange(20, device="cuda").reshape(4, 5)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function(x, y, offsets, labels)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function(x, y, offsets, labels)
    for seed in (0, 1):
        torch.manual_seed(seed)
        x.copy_(torch.randn(shape))
        y.copy_(torch.randn(shape))
        graph.replay()
        assert_all_equal(result, function(x, y, offsets, labels))


def test_results_are_the_same_every_time():
    x, y = torch.randn(3, 50_000, device="cuda"), torch.randn(3, 50_000, device="cuda")
    first = shfcas.conflict_scores(x, y)
    for _ in range(5):
        assert_all_equal(shfcas.conflict_scores(x, y), first)


def test_devices_must_agree():
    with pytest.raises(ValueError, match="y: expected the device of x"):
        shfcas.kendall_tau(torch.ones(3).cuda(), torch.ones(3))
    with pytest.raises(ValueError, match="x: expected a CUDA tensor, as the other arguments, got cpu"):
        shfcas.kendall_tau(torch.ones(3), torch.ones(3).cuda())
    with pytest.raises(ValueError, match="offsets: expected the device of x"):
        shfcas.kendall_tau(torch.ones(3).cuda(), torch.ones(3).cuda(), offsets=torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="labels: expected the device of logits"):
        torch.ops.shfcas.sequence_logprobs(torch.ones(1, 2, 3).cuda(), torch.ones(1, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int64)), "logits: expected 3 dimension"),
        (
            (torch.ones(1, 2, 3), torch.ones(2, dtype=torch.int64)),
            r"labels: expected the first two dimensions of logits, \(1, 2, 3\)",
        ),
        ((torch.ones(1, 2, 3), torch.ones(1, 2)), "labels: expected dtype Long"),
        ((torch.ones(1, 2, 3), torch.ones(1, 2, dtype=torch.int64), torch.ones(1, 2)), "mask: expected dtype Bool"),
    ],
)
def test_arguments_of_logprobs(arguments, message):
    with pytest.raises(ValueError, match=f"sequence_logprobs: {message}"):
        torch.ops.shfcas.sequence_logprobs(*(argument.cuda() for argument in arguments))


# The functions over the ops.


@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
@pytest.mark.parametrize("method", ["auto", "asymptotic", "exact"])
def test_kendall_test_equals_cpu(method, alternative):
    for n in (1, 2, 8, 33, 34, 200):
        x, y = make_rows((20, n), torch.float64, 26), make_rows((20, n), torch.float64, 27)
        options = {"method": method, "alternative": alternative}
        result = on_gpu(shfcas.kendall_test, x, y, **options)
        for one, other in zip(result, shfcas.kendall_test(x, y, **options), strict=True):
            close(one, other, torch.float64)


def test_kendall_test_in_a_graph():
    x, y = torch.randn(50, 20, device="cuda"), torch.randn(50, 20, device="cuda")
    expected = shfcas.kendall_test(x, y)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = shfcas.kendall_test(x, y)
    graph.replay()
    assert_all_equal(result, expected)


def test_gradient_of_sequence_logprobs():
    logits = make_rows((2, 3, 7), torch.float64, 28).cuda().requires_grad_()
    labels = torch.zeros(2, 3, dtype=torch.int64, device="cuda")
    assert torch.autograd.gradcheck(lambda logits: shfcas.sequence_logprobs(logits, labels, labels == 0), (logits,))


def test_nested_rows_equal_cpu():
    rows = [make_rows((n,), torch.float32, n) for n in (3, 17, 100)]
    on_cpu, on_device = (
        torch.nested.nested_tensor([row.to(device) for row in rows], layout=torch.jagged) for device in ("cpu", "cuda")
    )
    result, expected = shfcas.pacs(on_device, on_device * 2), shfcas.pacs(on_cpu, on_cpu * 2)
    close(result.values().cpu(), expected.values(), torch.float32)
