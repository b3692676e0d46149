"""Summary of a table's conflicts; summaries of shards can be added."""

from __future__ import annotations

import heapq
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

KENDALL_BINS, PACS_BINS, MAX_PACS = 100, 120, 6.0  # abs(PACS) above 6 needs rows of more than ten answers
TOP = 10


@dataclass
class ConflictSummary:
    """Counts, histograms, and the prompts with the highest conflict.

    Attributes:
        prompts: number of rows.
        answers: number of answers in all rows.
        degenerate: rows with equal rewards, equal policy scores, or a single answer; never selected.
        nan: rows with a score that is not a number.
        kendall_sum: sum of the Kendall distances, without NaN.
        pacs_sum: sum of abs(PACS) over all answers, without NaN.
        kendall: histogram of Kendall distances over [0, 1].
        pacs: histogram of abs(PACS) over [0, 6]; larger values are in the last bin.
        top: prompts with the highest Kendall distance, then mean abs(PACS).
    """

    prompts: int = 0
    answers: int = 0
    degenerate: int = 0
    nan: int = 0
    kendall_sum: float = 0.0
    pacs_sum: float = 0.0
    kendall: list[int] = field(default_factory=lambda: [0] * KENDALL_BINS)
    pacs: list[int] = field(default_factory=lambda: [0] * PACS_BINS)
    top: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_batch(cls, batch: pa.RecordBatch, first_row: int = 0) -> ConflictSummary:
        """Summarises one batch with conflict columns; prompts without an id are named by their row."""
        distance = torch.from_dlpack(batch.column("kendall_distance"))
        mean_abs = torch.from_dlpack(batch.column("mean_abs_pacs"))
        degenerate = torch.from_numpy(batch.column("degenerate").to_numpy(zero_copy_only=False).copy())
        pacs = torch.from_dlpack(batch.column("pacs").flatten()).abs()
        pacs, known = pacs[~pacs.isnan()], ~distance.isnan()
        conflict = torch.where(degenerate | ~known, -1.0, distance)
        ids = batch.column("prompt_id") if "prompt_id" in batch.schema.names else None
        top = [
            {
                "prompt_id": str(ids[row].as_py()) if ids is not None else f"row {first_row + row}",
                "kendall_distance": float(distance[row]),
                "mean_abs_pacs": float(mean_abs[row]),
            }
            for row in _highest(conflict, mean_abs)
        ]
        return cls(
            prompts=batch.num_rows,
            answers=len(batch.column("pacs").flatten()),
            degenerate=int(degenerate.sum()),
            nan=int(mean_abs.isnan().sum()),
            kendall_sum=float(distance[known].sum()),
            pacs_sum=float(pacs.sum(dtype=torch.float64)),
            # numpy puts numbers like 7 / 10 into the right bin; torch is faster for many numbers.
            kendall=np.histogram(distance[known].numpy(), KENDALL_BINS, (0, 1))[0].tolist(),
            pacs=torch.histc(pacs.clamp(max=MAX_PACS), PACS_BINS, 0, MAX_PACS).long().tolist(),
            top=top,
        )

    def __add__(self, other: ConflictSummary) -> ConflictSummary:
        """Adds two summaries; of equal conflicts, those of the left one come first."""
        added: dict[str, Any] = {
            name: [a + b for a, b in zip(value, getattr(other, name), strict=True)]
            if isinstance(value, list)
            else value + getattr(other, name)
            for name, value in vars(self).items()
            if name != "top"
        }
        return ConflictSummary(**added, top=heapq.nlargest(TOP, [*self.top, *other.top], key=_conflict))

    def to_dict(self) -> dict[str, Any]:
        """Returns the summary as a dictionary for JSON."""
        return asdict(self)

    @property
    def kendall_distance(self) -> float:
        """Returns the mean Kendall distance, without NaN."""
        return self.kendall_sum / sum(self.kendall) if any(self.kendall) else math.nan

    @property
    def mean_abs_pacs(self) -> float:
        """Returns the mean abs(PACS) over all answers, without NaN."""
        return self.pacs_sum / sum(self.pacs) if any(self.pacs) else math.nan

    def quantile(self, histogram: str, level: float) -> float:
        """Returns a quantile of `kendall` or `pacs`, with the resolution of a bin (its upper edge)."""
        counts = getattr(self, histogram)
        width = 1 / KENDALL_BINS if histogram == "kendall" else MAX_PACS / PACS_BINS
        wanted, seen = level * sum(counts), 0
        for index, count in enumerate(counts):
            seen += count
            if count and seen >= wanted:
                return (index + 1) * width
        return math.nan

    def text(self) -> str:
        """Returns the summary as readable text."""
        lines = [
            f"prompts         {self.prompts:,}",
            f"answers         {self.answers:,}",
            f"degenerate      {self.degenerate:,}",
            f"not a number    {self.nan:,}",
            "",
            "                      mean    5 %   25 %   50 %   75 %   95 %",
        ]
        for label, name, mean in (
            ("Kendall distance", "kendall", self.kendall_distance),
            ("abs(PACS)", "pacs", self.mean_abs_pacs),
        ):
            quantiles = "".join(f"{self.quantile(name, q):7.2f}" for q in (0.05, 0.25, 0.5, 0.75, 0.95))
            lines.append(f"{label:<18}{mean:8.3f}{quantiles}")
        lines += ["", "highest conflict                          distance  mean abs(PACS)"]
        for row in self.top:
            lines.append(f"{row['prompt_id'][:40]:<40}{row['kendall_distance']:10.3f}{row['mean_abs_pacs']:16.3f}")
        return "\n".join(lines)


def _conflict(row: dict[str, Any]) -> tuple[float, float]:
    return row["kendall_distance"], row["mean_abs_pacs"]


def _highest(conflict: torch.Tensor, mean_abs: torch.Tensor) -> list[int]:
    """Returns the top rows by conflict, then mean abs(PACS), then position; none with negative conflict."""
    if not len(conflict):
        return []
    bound = conflict.topk(min(TOP, len(conflict))).values[-1].clamp(min=0.0)
    rows = (conflict >= bound).nonzero().flatten()
    if len(rows) > TOP:  # many rows tie at the lowest selected distance: take the largest mean abs(PACS)
        above = rows[conflict[rows] > bound]
        tied = rows[conflict[rows] == bound]
        tied = tied[mean_abs[tied].sort(descending=True, stable=True).indices[: TOP - len(above)]]
        rows = torch.cat([above, tied]).sort().values
    ranked = sorted(rows.tolist(), key=lambda row: (-float(conflict[row]), -float(mean_abs[row]), row))
    return ranked[:TOP]
