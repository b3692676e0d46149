"""torch's jagged nested tensors in place of values and offsets."""

import pytest
import torch
from rows import assert_all_equal, make_jagged

import shfcas

PER_ROW = ("kendall_counts", "kendall_tau", "kendall_distance", "kendall_test")
PER_ANSWER = ("pacs", "conflict_scores")


def nested(values, offsets):
    return torch.nested.nested_tensor_from_jagged(values, offsets)


def parts(result):
    return list(result) if isinstance(result, tuple) else [result]


@pytest.mark.parametrize("name", [*PER_ROW, *PER_ANSWER])
def test_equals_offsets(name):
    function = getattr(shfcas, name)
    x, y, offsets = make_jagged([3, 0, 8, 1, 70], torch.float32, 0)
    expected = parts(function(x, y, offsets=offsets))
    # One offsets tensor, and equal ones.
    for other_offsets in (offsets, offsets.clone()):
        first, *others = parts(function(nested(x, offsets), nested(y, other_offsets)))
        assert first.is_nested == (name in PER_ANSWER)
        if first.is_nested:
            assert_all_equal([first.offsets()], [offsets])
            first = first.values()
        assert_all_equal([first, *others], expected)


def test_made_from_a_list():
    rows = [torch.randn(n) for n in (4, 1, 6)]
    x = torch.nested.nested_tensor(rows, layout=torch.jagged)
    y = torch.nested.nested_tensor([row.neg() for row in rows], layout=torch.jagged)
    assert shfcas.kendall_distance(x, y).nan_to_num(-1).tolist() == [1, -1, 1]


def test_scores_are_added_to_their_rewards():
    """The result has the ragged dimension of the first argument, not merely rows as long."""
    x, y, offsets = make_jagged([3, 2], torch.float32, 1)
    rewards = nested(x, offsets)
    total = rewards + shfcas.pacs(rewards, nested(y, offsets))
    torch.testing.assert_close(total.values(), x + shfcas.pacs(x, y, offsets=offsets))


def test_gradients_flow():
    x, y, offsets = make_jagged([3, 0, 5], torch.float64, 2)
    flat = x.clone().requires_grad_(), y.clone().requires_grad_()
    shfcas.pacs(*flat, offsets=offsets).pow(3).sum().backward()
    inputs = nested(x, offsets).requires_grad_(), nested(y, offsets).requires_grad_()
    shfcas.pacs(*inputs).pow(3).sum().backward()
    for one, other in zip(inputs, flat, strict=True):
        assert_all_equal([one.grad.values()], [other.grad])


@pytest.mark.parametrize("name", ["pacs", "kendall_tau"])
def test_compiles_without_a_break(name):
    torch.compiler.reset()
    function = getattr(shfcas, name)
    compiled = torch.compile(lambda x, y: function(x, y), fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in ([3, 5], [2, 8, 4]):
        x, y, offsets = make_jagged(lengths, torch.float32, 3)
        expected, result = (f(nested(x, offsets), nested(y, offsets)) for f in (function, compiled))
        assert_all_equal(*([r.values() if r.is_nested else r] for r in (result, expected)))


@pytest.mark.parametrize("name", [*PER_ROW, *PER_ANSWER])
def test_errors(name):
    function = getattr(shfcas, name)
    x, y, offsets = make_jagged([3, 2], torch.float32, 4)
    with pytest.raises(ValueError, match=f"{name}: .*: expected rows as long as those of .*, got other offsets"):
        function(nested(x, offsets), nested(y, torch.tensor([0, 2, 5])))
    with pytest.raises(ValueError, match=f"{name}: .*: expected rows as long as"):
        function(nested(x, offsets), nested(y, torch.tensor([0, 5])))
    with pytest.raises(TypeError, match=f"{name}: .*: expected .* both nested or both not"):
        function(nested(x, offsets), y)
    with pytest.raises(ValueError, match=f"{name}: offsets: expected None with nested tensors"):
        function(nested(x, offsets), nested(y, offsets), offsets=offsets)
    with pytest.raises(ValueError, match=r"expected a nested tensor of shape \(B, jagged\)"):
        function(nested(x[:, None], offsets), nested(y[:, None], offsets))
    with pytest.raises(TypeError, match=r"expected a nested tensor with layout torch.jagged.*layout=torch.jagged"):
        strided = torch.nested.nested_tensor([x[:3], x[3:]], layout=torch.strided)
        function(strided, strided)


def test_a_view_with_lengths_names_the_remedy():
    starts, lengths = torch.tensor([0, 1]), torch.tensor([2, 3])
    x = torch.nested.narrow(torch.randn(2, 6), 1, starts, lengths, layout=torch.jagged)
    with pytest.raises(ValueError, match=r"kendall_tau: x: .* lengths of its own; pass x.contiguous\(\)"):
        shfcas.kendall_tau(x, x)
    assert shfcas.kendall_tau(x.contiguous(), x.contiguous()).tolist() == [1, 1]
