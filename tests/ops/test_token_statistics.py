"""The ops that stand in where a device has no compiled kernel, beside the kernels of the CPU."""

import math

import pytest
import torch
from rows import FLOATING, make_rows

from shfcas.ops import _token_statistics

op, backward_op = torch.ops.shfcas.token_statistics.default, torch.ops.shfcas.token_statistics_backward.default


def cases(dtype):
    """Logits with some minus infinities, labels and a mask or none; one is a view with gaps."""
    generator = torch.Generator().manual_seed(0)
    for length, vocabulary in ((3, 1), (4, 7), (5, 300)):
        logits = make_rows((2, length + 2, vocabulary), dtype, vocabulary)[:, 1:-1] * 4
        labels = torch.randint(vocabulary, (2, length), generator=generator)
        if vocabulary > 1:
            excluded = torch.rand(logits.shape, generator=generator) < 0.2
            logits = logits.masked_fill(excluded.scatter(2, labels[..., None], False), -math.inf)
        mask = torch.rand(2, length, generator=generator) < 0.7
        yield logits, labels, None
        yield logits, labels.where(mask, -100), mask


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("portion", [1, 1 << 24])
def test_the_same_as_the_kernels(dtype, temperature, portion, monkeypatch):
    monkeypatch.setattr(_token_statistics, "_CHUNK", portion)
    tolerance = 1e-12 if dtype == torch.float64 else 4e-6
    for logits, labels, mask in cases(dtype):
        for entropy in (False, True):
            expected = op(logits, labels, mask, temperature, entropy)
            got = _token_statistics._statistics(logits, labels, mask, temperature, entropy)
            for mine, theirs in zip(got[:3], expected[:3], strict=True):
                torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
            g, h = (make_rows(labels.shape, expected[0].dtype, 1 + i) for i in range(2))
            of_entropy = (h, expected[2]) if entropy else (None, None)
            gradient = backward_op(g, of_entropy[0], logits, labels, mask, of_entropy[1], expected[3], temperature)
            mine = _token_statistics._statistics_backward(
                g, of_entropy[0], logits, labels, mask, of_entropy[1], got[3], temperature
            )
            bound = max(tolerance, 4 * torch.finfo(dtype).eps)
            torch.testing.assert_close(mine, gradient, rtol=bound, atol=bound)


def test_labels_outside_the_vocabulary_are_nan_as_on_a_gpu():
    logits = make_rows((1, 3, 4), torch.float32, 0)
    _, logprobs, _, normalizer = _token_statistics._statistics(logits, torch.tensor([[0, 4, -1]]))
    assert logprobs.isnan().tolist() == [[False, True, True]]
    assert normalizer[..., 1].isnan().tolist() == [[False, True, True]]


def test_it_stands_in_on_every_device_without_a_kernel():
    for name in ("token_statistics", "token_statistics_backward"):
        for device in ("CPU", "CUDA", "MPS", "XPU"):
            assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"shfcas::{name}", device)
        registered = torch._C._dispatch_dump(f"shfcas::{name}")
        assert "CPU:" in registered and "CompositeExplicitAutograd" in registered


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3, 4)}, "logits: expected shape"),
        ({"labels": torch.zeros(1, 2, dtype=torch.int64)}, "labels: expected shape"),
        ({"temperature": 0.0}, "temperature: expected a finite number above 0"),
    ],
)
def test_errors(change, message):
    arguments = {"logits": torch.zeros(1, 3, 4), "labels": torch.zeros(1, 3, dtype=torch.int64)} | change
    with pytest.raises(ValueError, match=message):
        _token_statistics._statistics(**arguments)
