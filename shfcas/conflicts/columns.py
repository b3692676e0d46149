"""PACS and Kendall distance as columns of candidate tables.

The ops read list columns directly from Arrow's memory, as values and offsets, without a copy.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from shfcas.data.candidates import CandidateTable
from shfcas.ops.functional import conflict_scores
from shfcas.sampling.contrast import PREFIX
from shfcas.utils.errors import UserError

SCORE_COLUMNS: dict[str, tuple[str, ...]] = {
    "logprob": ("logprobs",),
    "mean_logprob": ("logprobs", "num_tokens"),
    "logprob_ratio": ("logprobs", "reference_logprobs"),
    "contrast": (),
    "mean_contrast": ("num_tokens",),
}
POLICY_SCORES = tuple(SCORE_COLUMNS)
CONTRASTS = ("contrast", "mean_contrast")  # scores that also read all columns of contrasts


class Answers(NamedTuple):
    """List column: (T,) values of all rows, and (B + 1,) int64 offsets, starting at 0."""

    values: Tensor
    offsets: Tensor


def list_column(batch: pa.RecordBatch, name: str, where: str = "candidate table", first_row: int = 0) -> Answers:
    """Returns the numbers of a list column, as views of its memory.

    Args:
        batch: rows of a candidate table.
        name: a column of lists of numbers.
        where: the table's name, for errors.
        first_row: index of the batch's first row in the table.

    Raises:
        UserError: the column is missing or has the wrong type, or a row or value is null; the message names the row.
    """
    if name not in batch.schema.names:
        CandidateTable(pa.Table.from_batches([batch])).require(name)
    array = batch.column(name)
    kind = array.type
    if pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        array = array.cast(pa.list_(kind.value_type))
    elif not pa.types.is_list(kind):
        raise UserError(f"{where}: column {name} has type {kind}, expected lists of numbers")
    if not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise UserError(f"{where}: column {name} has type {kind}, expected lists of numbers")
    if array.null_count:
        row = array.is_null().index(True).as_py()
        raise UserError(f"{where}: row {first_row + row}, column {name}: null")
    offsets = torch.from_dlpack(array.offsets).long()
    begin, end = int(offsets[0]), int(offsets[-1])
    values = array.values.slice(begin, end - begin)
    if values.null_count:
        position = values.is_null().index(True).as_py() + begin
        row = int(torch.searchsorted(offsets, position, right=True)) - 1
        raise UserError(f"{where}: row {first_row + row}, column {name}: a value is null")
    return Answers(torch.from_dlpack(values), offsets - begin)


def score_columns(policy_score: str, present: Sequence[str]) -> tuple[str, ...]:
    """Returns the columns that a policy score reads, from the names of a table's columns.

    Raises:
        UserError: the score is unknown, or needs contrasts and there is no such column.
    """
    if policy_score not in SCORE_COLUMNS:
        raise UserError(f"unknown policy_score {policy_score!r}, one of {', '.join(POLICY_SCORES)}")
    if policy_score not in CONTRASTS:
        return SCORE_COLUMNS[policy_score]
    contrasts = sorted(name for name in present if name.startswith(PREFIX))
    if not contrasts:
        raise UserError(
            f"policy_score {policy_score}: the table has no column {PREFIX}*; "
            "shfcas score --principles and --policy_score_model add it"
        )
    return (*contrasts, *SCORE_COLUMNS[policy_score])


def policy_scores(
    batch: pa.RecordBatch, policy_score: str, where: str = "candidate table", first_row: int = 0
) -> Answers:
    """Computes the policy's score of every answer.

    Args:
        batch: rows of a candidate table, with the columns of the score (`SCORE_COLUMNS`).
        policy_score: `logprob`, the sum over the response as in the paper; `mean_logprob`, the mean per token;
            `logprob_ratio`, log(policy / reference) of the whole response, which removes the effect of length and
            fluency (DPO's implicit reward, Rafailov et al. 2023); `contrast`, log p(y | x, good) - log p(y | x, bad) of
            two opposite instructions, averaged over the columns of all principles (`shfcas.sampling.contrast`);
            `mean_contrast`, the same per token.
        where: see `list_column`.
        first_row: see `list_column`.

    Raises:
        UserError: a column is missing or malformed; the message names column and row.
    """
    names = score_columns(policy_score, batch.schema.names)
    scores, *others = (list_column(batch, name, where, first_row) for name in names)
    for name, other in zip(names[1:], others, strict=True):
        _check_lengths(names[0], scores, name, other, where, first_row)
    values = scores.values
    if policy_score in CONTRASTS:
        several = [scores, *(other for name, other in zip(names[1:], others, strict=True) if name != "num_tokens")]
        values = torch.stack([column.values for column in several]).mean(dim=0)
    if policy_score == "logprob_ratio":
        values = values - others[0].values
    if policy_score.startswith("mean_"):
        values = values / others[-1].values.clamp(min=1)
    return Answers(values, scores.offsets)


def add_conflicts_to_batch(
    batch: pa.RecordBatch, policy_score: str = "logprob", where: str = "candidate table", first_row: int = 0
) -> pa.RecordBatch:
    """Adds `pacs`, `kendall_distance`, `kendall_tau_b`, `mean_abs_pacs` and `degenerate` to a batch.

    PACS is float32 if rewards and policy scores are both float32, otherwise float64. Arguments and errors are those
    of `policy_scores`; the batch also needs `rewards`.
    """
    rewards = list_column(batch, "rewards", where, first_row)
    scores = policy_scores(batch, policy_score, where, first_row)
    _check_lengths("rewards", rewards, score_columns(policy_score, batch.schema.names)[0], scores, where, first_row)
    single = rewards.values.dtype == scores.values.dtype == torch.float32
    dtype = torch.float32 if single else torch.float64
    result = conflict_scores(rewards.values.to(dtype), scores.values.to(dtype), offsets=rewards.offsets)
    columns: dict[str, Any] = {
        "pacs": pa.ListArray.from_arrays(_arrow(rewards.offsets.int()), _arrow(result.pacs)),
        "kendall_distance": _arrow(result.kendall_distance),
        "kendall_tau_b": _arrow(result.kendall_tau_b),
        "mean_abs_pacs": _arrow(result.mean_abs_pacs.double()),
        "degenerate": _arrow(result.degenerate),
    }
    names = [name for name in batch.schema.names if name not in columns]
    arrays = {name: batch.column(name) for name in names} | columns
    return pa.RecordBatch.from_pydict(arrays)


def add_conflicts(candidates: CandidateTable, policy_score: str = "logprob") -> CandidateTable:
    """Adds `pacs`, `kendall_distance`, `kendall_tau_b`, `mean_abs_pacs` and `degenerate` to a scored table."""
    scored = add_conflicts_to_batch(candidates.batch(), policy_score)
    return CandidateTable(pa.Table.from_batches([scored]), candidates.metadata).with_metadata(policy_score=policy_score)


def _arrow(values: Tensor) -> pa.Array:
    return pa.array(values.numpy())


def _check_lengths(one: str, a: Answers, other: str, b: Answers, where: str, first_row: int) -> None:
    if not torch.equal(a.offsets, b.offsets):
        lengths_a, lengths_b = a.offsets.diff(), b.offsets.diff()
        row = int((lengths_a != lengths_b).nonzero()[0])
        raise UserError(
            f"{where}: row {first_row + row}: {int(lengths_a[row])} values in column {one}, "
            f"{int(lengths_b[row])} in {other}"
        )
