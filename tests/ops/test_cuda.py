import pytest
import torch
from rows import FLOATING, INTEGER, SIZES, assert_all_equal, make_jagged, make_rows

import shfcas

pytestmark = [
    pytest.mark.needs_cuda,
    pytest.mark.skipif(not shfcas.build_facts()["cuda"], reason="built without CUDA"),
]


def on_gpu(function, *arguments, **options):
    """The result of a function on the GPU, brought back."""
    moved = {name: o.cuda() if isinstance(o, torch.Tensor) else o for name, o in options.items()}
    result = function(*(argument.cuda() for argument in arguments), **moved)
    return [part.cpu() for part in result] if isinstance(result, tuple) else [result.cpu()]


@pytest.mark.parametrize("distinct", [None, 3])
@pytest.mark.parametrize("n", [*SIZES, 1024, 3000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64, torch.int32])
def test_counts_equal_cpu(dtype, n, distinct):
    x, y = make_rows((150, n), dtype, 0, distinct), make_rows((150, n), dtype, 1, distinct)
    assert_all_equal(on_gpu(shfcas.kendall_counts, x, y), shfcas.kendall_counts(x, y))
    for variant in ("a", "b", "c"):
        assert_all_equal(on_gpu(shfcas.kendall_tau, x, y, variant=variant), [shfcas.kendall_tau(x, y, variant=variant)])
    assert_all_equal(on_gpu(shfcas.kendall_distance, x, y), [shfcas.kendall_distance(x, y)])


@pytest.mark.parametrize("dtype", [*FLOATING, *INTEGER])
def test_every_dtype(dtype):
    x, y = make_rows((9, 21), dtype, 2, 5).t(), make_rows((9, 21), dtype, 3, 5).t()
    assert_all_equal(on_gpu(shfcas.kendall_counts, x, y), shfcas.kendall_counts(x, y))


@pytest.mark.parametrize("n", [*SIZES, 1024])
@pytest.mark.parametrize("dtype", FLOATING)
def test_conflict_scores_close_to_cpu(dtype, n):
    rewards, logprobs = make_rows((70, n), dtype, 4), make_rows((70, n), dtype, 5) * 20 - 300
    if n > 0:
        rewards[3, 0] = float("nan")
        logprobs[5] = -7
        rewards[6, 0] = float("inf")
    expected = shfcas.conflict_scores(rewards, logprobs)
    result = shfcas.ConflictScores(*on_gpu(shfcas.conflict_scores, rewards, logprobs))
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_jagged_equals_cpu():
    x, y, offsets = make_jagged([*SIZES, 300, *SIZES], torch.float32, 6, 9)
    assert_all_equal(on_gpu(shfcas.kendall_counts, x, y, offsets=offsets), shfcas.kendall_counts(x, y, offsets=offsets))


def test_gradient():
    rewards, logprobs = (make_rows((3, 9), torch.float64, seed).cuda().requires_grad_() for seed in (7, 8))
    assert torch.autograd.gradcheck(shfcas.pacs, (rewards, logprobs))


@pytest.mark.parametrize("offsets", [[0, 4, 2, 6], [0, 1000], [-5, 6], [3, 1]])
def test_bad_offsets_stay_inside_the_values(offsets):
    offsets = torch.tensor(offsets, device="cuda")
    x = torch.ones(6, device="cuda")
    shfcas.conflict_scores(x, x, offsets=offsets)
    torch.cuda.synchronize()


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


def test_devices_must_agree():
    with pytest.raises(ValueError, match="y: expected the device of x"):
        shfcas.kendall_tau(torch.ones(3).cuda(), torch.ones(3))
    with pytest.raises(ValueError, match="x: expected a CUDA tensor, as the other arguments, got cpu"):
        shfcas.kendall_tau(torch.ones(3), torch.ones(3).cuda())
    with pytest.raises(ValueError, match="offsets: expected the device of x"):
        shfcas.kendall_tau(torch.ones(3).cuda(), torch.ones(3).cuda(), offsets=torch.tensor([0, 3]))
