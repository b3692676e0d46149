import pytest
import torch

import shfcas

OPS = {
    "kendall_counts": ("x", "y"),
    "kendall_tau": ("x", "y"),
    "kendall_distance": ("x", "y"),
    "kendall_test": ("x", "y"),
    "pacs": ("rewards", "logprobs"),
    "conflict_scores": ("rewards", "logprobs"),
}
every_op = pytest.mark.parametrize("name", OPS)


@every_op
def test_shapes_must_agree(name):
    message = rf"{name}: {OPS[name][1]}: expected the shape of {OPS[name][0]}, \(2, 3\), got \(3, 2\)"
    with pytest.raises(ValueError, match=message):
        getattr(shfcas, name)(torch.ones(2, 3), torch.ones(3, 2))


@every_op
def test_a_scalar_has_no_rows(name):
    with pytest.raises(ValueError, match=rf"{name}: {OPS[name][0]}: expected at least 1 dimension"):
        getattr(shfcas, name)(torch.tensor(1.0), torch.tensor(1.0))


@every_op
def test_dtypes_must_agree(name):
    with pytest.raises(TypeError, match=rf"{name}: {OPS[name][1]}: expected the dtype of {OPS[name][0]}"):
        getattr(shfcas, name)(torch.ones(3), torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="expected the dtype"):
        getattr(torch.ops.shfcas, name)(torch.ones(3), torch.ones(3, dtype=torch.float64))


@every_op
@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64])
def test_dtypes_must_be_numbers_in_order(name, dtype):
    x = torch.ones(3, dtype=dtype)
    with pytest.raises(TypeError, match=rf"{name}: {OPS[name][0]}: expected one of the dtypes"):
        getattr(shfcas, name)(x, x)
    with pytest.raises(ValueError, match="expected dtype float64"):
        getattr(torch.ops.shfcas, name)(x, x)


@pytest.mark.parametrize("name", ["pacs", "conflict_scores"])
def test_scores_must_be_floating(name):
    x = torch.ones(3, dtype=torch.int64)
    with pytest.raises(TypeError, match=f"{name}: rewards: expected one of the dtypes"):
        getattr(shfcas, name)(x, x)
    with pytest.raises(ValueError, match=f"{name}: rewards: expected dtype float64"):
        getattr(torch.ops.shfcas, name)(x, x)


@every_op
def test_arguments_must_be_tensors(name):
    with pytest.raises(TypeError, match=rf"{name}: {OPS[name][0]}: expected a torch.Tensor, got list"):
        getattr(shfcas, name)([1.0, 2.0], torch.ones(2))
    with pytest.raises(TypeError, match=rf"{name}: offsets: expected a torch.Tensor, got list"):
        getattr(shfcas, name)(torch.ones(2), torch.ones(2), offsets=[0, 2])


@every_op
@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 4, 2, 6], "never decrease, got 4 followed by 2 at row 1"),
        ([0, 100, 6], "never decrease, got 100 followed by 6 at row 1"),
        ([0, 3, 7], "last offset equal to the number of values, 6, got 7"),
        ([0, 3], "last offset equal to the number of values, 6, got 3"),
        ([1, 6], "a first offset of 0, got 1"),
        ([-1, 6], "a first offset of 0, got -1"),
        ([0, -(2**63), 6], "never decrease"),
        ([], "one more offset than rows, got none"),
        ([[0, 6]], r"1 dimension\(s\), got shape \(1, 2\)"),
    ],
)
def test_offsets_must_fit(name, offsets, message):
    offsets = torch.tensor(offsets, dtype=torch.int64)
    for module in (shfcas, torch.ops.shfcas):
        with pytest.raises(ValueError, match=f"{name}: offsets: expected .*{message}"):
            getattr(module, name)(torch.ones(6), torch.ones(6), offsets=offsets)


@every_op
def test_offsets_must_be_int64(name):
    offsets = torch.tensor([0, 6], dtype=torch.int32)
    with pytest.raises(TypeError, match=f"{name}: offsets: expected dtype int64, got torch.int32"):
        getattr(shfcas, name)(torch.ones(6), torch.ones(6), offsets=offsets)
    with pytest.raises(ValueError, match=f"{name}: offsets: expected dtype int64"):
        getattr(torch.ops.shfcas, name)(torch.ones(6), torch.ones(6), offsets=offsets)


@every_op
def test_jagged_values_must_be_flat(name):
    with pytest.raises(ValueError, match=rf"{name}: {OPS[name][0]}: expected 1 dimension"):
        getattr(shfcas, name)(torch.ones(2, 3), torch.ones(2, 3), offsets=torch.tensor([0, 6]))


@every_op
def test_rows_are_not_too_long(name):
    values = torch.ones(1).expand(2**31)  # one number in memory
    message = f"{name}: {OPS[name][0]}: expected rows of at most 2147483647 values, got 2147483648"
    with pytest.raises(ValueError, match=message):
        getattr(shfcas, name)(values, values)
    with pytest.raises(ValueError, match=message):
        getattr(shfcas, name)(values, values, offsets=torch.tensor([0, 0, 2**31]))


@pytest.mark.parametrize("name", ["kendall_tau", "kendall_test", "kendall_tau_matrix"])
def test_variant_must_be_known(name):
    x = torch.ones(2, 3)
    arguments = (x,) if name.endswith("matrix") else (x, x)
    with pytest.raises(ValueError, match=f"{name}: variant: expected 'a', 'b' or 'c', got 'd'"):
        getattr(shfcas, name)(*arguments, variant="d")


def test_alternative_and_method_must_be_known():
    x = torch.ones(3)
    with pytest.raises(ValueError, match="alternative: expected 'two-sided', 'less' or 'greater', got 'more'"):
        shfcas.kendall_test(x, x, alternative="more")
    with pytest.raises(ValueError, match="method: expected 'auto', 'exact' or 'asymptotic', got 'banana'"):
        shfcas.kendall_test(x, x, method="banana")


@pytest.mark.parametrize("name", ["kendall_tau_matrix", "kendall_distance_matrix"])
def test_a_matrix_has_two_dimensions_of_numbers(name):
    function = getattr(shfcas, name)
    with pytest.raises(ValueError, match=rf"{name}: x: expected 2 dimension\(s\), got shape \(3,\)"):
        function(torch.ones(3))
    with pytest.raises(ValueError, match=f"{name}: x: expected rows of at most 2147483647 values"):
        function(torch.ones(1).expand(1, 2**31))
    with pytest.raises(TypeError, match=f"{name}: x: expected one of the dtypes float64.*, got torch.bool"):
        function(torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(TypeError, match=f"{name}: x: expected a torch.Tensor, got list"):
        function([[1.0]])


def test_gradient_must_fit():
    with pytest.raises(ValueError, match="pacs_backward: gradient: expected the shape of rewards"):
        torch.ops.shfcas.pacs_backward(torch.ones(2), torch.ones(3), torch.ones(3))
    logits, labels = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)
    backward, normalizer = torch.ops.shfcas.token_statistics_backward, torch.ones(2, 3, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"token_statistics_backward: gradient: expected the first two dimensions"):
        backward(torch.ones(3), None, logits, labels, None, None, normalizer)
    with pytest.raises(ValueError, match=r"token_statistics_backward: normalizer: expected the normalizer"):
        backward(torch.ones(2, 3), None, logits, labels, None, None, normalizer[0])
    with pytest.raises(ValueError, match=r"token_statistics_backward: entropy: expected the entropy"):
        backward(torch.ones(2, 3), torch.ones(2, 3), logits, labels, None, None, normalizer)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(2, 3)}, ValueError, r"logits: expected 3 dimension\(s\), got shape \(2, 3\)"),
        ({"logits": torch.zeros(2, 3, 4, dtype=torch.int64)}, TypeError, "logits: expected one of the dtypes float64"),
        ({"labels": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, "labels: expected dtype int64, got torch.int32"),
        ({"labels": torch.zeros(2, 4, dtype=torch.int64)}, ValueError, "labels: expected the first two dimensions"),
        ({"labels": [[0]]}, TypeError, "labels: expected a torch.Tensor, got list"),
        ({"mask": torch.ones(2, 3)}, TypeError, "mask: expected dtype bool, got torch.float32"),
        ({"mask": torch.ones(3, 2, dtype=torch.bool)}, ValueError, "mask: expected the first two dimensions"),
        (
            {"labels": torch.tensor([[0, 1, 2], [3, 4, 0]])},
            ValueError,
            r"labels: expected .* \[0, 4\).* got 4 at \[1, 1\]",
        ),
        ({"labels": torch.tensor([[0, 1, 2], [3, 0, -1]])}, ValueError, r"got -1 at \[1, 2\]"),
        ({"logits": torch.zeros(2, 3, 0)}, ValueError, r"expected values in \[0, 0\)"),
    ],
)
def test_sequence_logprobs(change, error, message):
    arguments = {"logits": torch.zeros(2, 3, 4), "labels": torch.zeros(2, 3, dtype=torch.int64), "mask": None, **change}
    for function in (shfcas.sequence_logprobs, shfcas.token_logprobs):
        with pytest.raises(error, match=f"^{function.__name__}: .*{message}"):
            function(*arguments.values())


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_temperature(temperature):
    logits, labels = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^token_logprobs: temperature: expected a finite number above 0"):
        shfcas.token_logprobs(logits, labels, temperature=temperature)
    with pytest.raises(ValueError, match=r"^linear_token_logprobs: temperature: expected a finite number above 0"):
        shfcas.linear_token_logprobs(logits, logits[0], labels, temperature=temperature)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.tensor(1.0)}, ValueError, r"hidden: expected at least 1 dimension, got a scalar"),
        ({"hidden": torch.zeros(2, 4, dtype=torch.int64)}, TypeError, "hidden: expected one of the dtypes float64"),
        ({"weight": torch.zeros(5, 4).double()}, TypeError, "weight: expected dtype float32, got torch.float64"),
        ({"weight": torch.zeros(5, 3)}, ValueError, r"weight: expected shape \(V, 4\).* got \(5, 3\)"),
        ({"weight": torch.zeros(0, 4), "bias": None}, ValueError, "weight: expected at least one row, got none"),
        (
            {"labels": torch.zeros(3, dtype=torch.int64)},
            ValueError,
            r"labels: expected the shape .* \(2,\), got \(3,\)",
        ),
        ({"labels": torch.tensor([0, 5])}, ValueError, r"labels: expected values in \[0, 5\), got 0 to 5"),
        ({"labels": torch.tensor([0.0, 1.0])}, TypeError, "labels: expected dtype int64"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias: expected shape \(5,\), got \(4,\)"),
    ],
)
def test_linear_token_logprobs(change, error, message):
    arguments = {
        "hidden": torch.zeros(2, 4),
        "weight": torch.zeros(5, 4),
        "labels": torch.zeros(2, dtype=torch.int64),
        "bias": torch.zeros(5),
        **change,
    }
    with pytest.raises(error, match=f"^linear_token_logprobs: {message}"):
        shfcas.linear_token_logprobs(**arguments)
