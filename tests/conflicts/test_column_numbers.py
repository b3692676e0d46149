"""Where conflict columns come from: slices, list types and precisions, and the row that an error names."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from shfcas.conflicts.columns import add_conflicts_to_batch, list_column, policy_scores
from shfcas.utils.errors import UserError

REWARDS = [[0.5, 1.0], [2.0, 3.0, -1.0], [4.0], [1.0, 0.0]]
LOGPROBS = [[-1.0, -2.0], [-3.0, -1.0, -2.0], [-1.0], [-5.0, -4.0]]
TOKENS = [[1, 2], [3, 4, 5], [6], [0, 8]]


def batch(kind: pa.DataType | None = None, **columns: list) -> pa.RecordBatch:
    kind = kind or pa.list_(pa.float64())
    given = {"rewards": REWARDS, "logprobs": LOGPROBS, "num_tokens": TOKENS, "reference_logprobs": LOGPROBS, **columns}
    types = {"num_tokens": pa.list_(pa.int64())}
    return pa.RecordBatch.from_pydict({name: pa.array(v, type=types.get(name, kind)) for name, v in given.items()})


def rows(answers: object) -> list[list[float]]:
    values, offsets = answers  # type: ignore[misc]
    return [values[a:b].tolist() for a, b in pairwise(offsets.tolist())]


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.large_list(pa.float64()), pa.list_(pa.float32())])
@pytest.mark.parametrize(("start", "length"), [(0, 4), (1, 2), (2, 2), (3, 1), (1, 0)])
def test_a_slice_has_its_own_values_alone(kind: pa.DataType, start: int, length: int) -> None:
    part = batch(kind).slice(start, length)
    found = list_column(part, "rewards")
    assert rows(found) == REWARDS[start : start + length] and found.offsets[0] == 0
    assert len(found.values) == sum(map(len, REWARDS[start : start + length]))
    means = rows(policy_scores(part, "mean_logprob"))
    for i, row in enumerate(means, start=start):
        assert row == pytest.approx([p / max(n, 1) for p, n in zip(LOGPROBS[i], TOKENS[i], strict=True)])
    assert len(means) == length


def test_lists_of_a_fixed_size_are_lists() -> None:
    array = pa.array([[1.0, 2.0], [3.0, 4.0]], type=pa.list_(pa.float64(), 2))
    assert rows(list_column(pa.RecordBatch.from_pydict({"rewards": array}), "rewards")) == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("function", [add_conflicts_to_batch, policy_scores])
@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("logprobs", [[-1.0, -2.0], None, [-1.0], None], "row 11, column logprobs: null"),
        (
            "logprobs",
            [[-1.0, -2.0], [-3.0, None, None], [None], [-5.0, -4.0]],
            "row 11, column logprobs: a value is null",
        ),
        (
            "logprobs",
            [[-1.0, -2.0], [-3.0, -1.0, -2.0], [None], [-5.0, -4.0]],
            "row 12, column logprobs: a value is null",
        ),
        (
            "logprobs",
            [[None, -2.0], [-3.0, -1.0, -2.0], [-1.0], [None, -4.0]],
            "row 10, column logprobs: a value is null",
        ),
        (
            "num_tokens",
            [[1, 2], [3, 4], [6, 7], [0, 8]],
            "row 11: 3 values in column logprobs, 2 in num_tokens",
        ),
    ],
)
def test_an_error_names_table_row_and_column(function: object, column: str, values: list, message: str) -> None:
    with pytest.raises(UserError, match=f"^my table: {message}$"):
        function(batch(**{column: values}), "mean_logprob", "my table", 10)  # type: ignore[operator]
    with pytest.raises(UserError, match=f"^candidate table: {message.replace('row 1', 'row ')}$"):
        function(batch(**{column: values}), "mean_logprob")  # type: ignore[operator]


def test_a_null_in_a_slice_is_named_by_its_row_in_the_table() -> None:
    part = batch(logprobs=[[-1.0, -2.0], [-3.0, -1.0, -2.0], [-1.0], [-5.0, None]]).slice(1)
    with pytest.raises(UserError, match=r"^t: row 13, column logprobs: a value is null$"):
        list_column(part, "logprobs", "t", 11)
    with pytest.raises(UserError, match=r"^candidate table: row 2, column logprobs: a value is null$"):
        list_column(part, "logprobs")


def test_an_error_of_the_rewards_names_the_policys_column_too() -> None:
    wrong = batch(rewards=[[0.5, 1.0], [2.0, 3.0, -1.0], [4.0], [1.0]])
    with pytest.raises(UserError, match=r"^my table: row 13: 1 values in column rewards, 2 in logprobs$"):
        add_conflicts_to_batch(wrong, "logprob", "my table", 10)
    with pytest.raises(UserError, match=r"^candidate table: row 3: 1 values in column rewards"):
        add_conflicts_to_batch(wrong)
    null = batch(rewards=[[0.5, 1.0], None, [4.0], [1.0, 0.0]])
    with pytest.raises(UserError, match=r"^my table: row 11, column rewards: null$"):
        add_conflicts_to_batch(null, "logprob", "my table", 10)


@pytest.mark.parametrize("values", [pa.list_(pa.string()), pa.string()])
def test_what_is_no_list_of_numbers_is_named_with_its_type(values: pa.DataType) -> None:
    array = pa.array([["a"]] if pa.types.is_list(values) else ["a"], type=values)
    with pytest.raises(UserError, match=r"^t: column rewards has type .*string.*, expected lists of numbers$"):
        list_column(pa.RecordBatch.from_pydict({"rewards": array}), "rewards", "t")


@pytest.mark.parametrize(
    ("rewards", "logprobs", "made"),
    [("float32", "float32", "float"), ("float64", "float32", "double"), ("float32", "float64", "double")],
)
def test_pacs_is_as_precise_as_its_inputs(rewards: str, logprobs: str, made: str) -> None:
    given = {
        "rewards": pa.array(REWARDS, type=pa.list_(pa.type_for_alias(rewards))),
        "logprobs": pa.array(LOGPROBS, type=pa.list_(pa.type_for_alias(logprobs))),
    }
    found = add_conflicts_to_batch(pa.RecordBatch.from_pydict(given))
    assert str(found.column("pacs").type.value_type) == made and str(found.column("mean_abs_pacs").type) == "double"
    exact = add_conflicts_to_batch(batch())
    for name in ("pacs", "mean_abs_pacs"):
        one, two = (np.array(f.column(name).to_pylist()[1], dtype=float) for f in (found, exact))
        assert one == pytest.approx(two, abs=1e-6)
