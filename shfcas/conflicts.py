"""Where the policy and the reward model disagree: adds PACS and the Kendall distance to a candidate table."""

import torch

from shfcas.candidates import CandidateTable
from shfcas.errors import UserError
from shfcas.ops import conflict_scores

POLICY_SCORES = ("logprob", "mean_logprob", "logprob_ratio")


def policy_scores(candidates: CandidateTable, policy_score: str) -> torch.Tensor:
    """The policy's score of every answer, float64, shape (T,).

    Args:
        candidates: a table with `logprobs` (and what the score needs besides).
        policy_score: `logprob`, the sum over the response as in the paper; `mean_logprob`, the mean a token;
            `logprob_ratio`, log(policy / reference) of the whole response, which takes length and fluency out
            (DPO's implicit reward, Rafailov et al. 2023).
    """
    logprobs = candidates.values("logprobs")
    if policy_score == "logprob":
        return logprobs
    if policy_score == "mean_logprob":
        return logprobs / candidates.values("num_tokens").clamp(min=1)
    if policy_score == "logprob_ratio":
        if "reference_logprobs" not in candidates:
            raise UserError(
                "policy_score logprob_ratio needs the column reference_logprobs: sample with a reference model "
                "(reference: MODEL), or use policy_score logprob"
            )
        return logprobs - candidates.values("reference_logprobs")
    raise UserError(f"unknown policy_score {policy_score!r}, one of {', '.join(POLICY_SCORES)}")


def add_conflicts(candidates: CandidateTable, policy_score: str = "logprob") -> CandidateTable:
    """Adds `pacs`, `kendall_distance`, `kendall_tau_b`, `mean_abs_pacs` and `degenerate` to a scored table."""
    candidates.require("rewards", "logprobs")
    scores = conflict_scores(
        candidates.values("rewards"), policy_scores(candidates, policy_score), offsets=candidates.offsets()
    )
    return candidates.with_columns(
        pacs=candidates.split(scores.pacs),
        kendall_distance=scores.kendall_distance.tolist(),
        kendall_tau_b=scores.kendall_tau_b.tolist(),
        mean_abs_pacs=scores.mean_abs_pacs.tolist(),
        degenerate=scores.degenerate.tolist(),
    ).with_metadata(policy_score=policy_score)
