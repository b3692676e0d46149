"""Feedback from a gold scorer: a trusted, expensive reward in the annotator's role."""

from collections.abc import Sequence

from shfcas.data.candidates import CandidateTable
from shfcas.data.preferences import Preference
from shfcas.feedback.annotation.schema import make_preference, rows_asked_about
from shfcas.rewards.scorers import RewardScorer
from shfcas.rewards.table import score_rows
from shfcas.selection import Comparison


class GoldFeedback:
    """Feedback source that prefers the answer with the higher gold reward; equal rewards are a tie.

    Args:
        scorer: the gold reward.
        name: the annotator's name in the preferences.
    """

    def __init__(self, scorer: RewardScorer, name: str = "gold") -> None:
        self.scorer, self.name = scorer, name

    def __call__(self, comparisons: Sequence[Comparison], candidates: CandidateTable, round: int) -> list[Preference]:
        """Judges the comparisons; only the prompts in the queue are scored."""
        asked = rows_asked_about(comparisons, candidates)
        scored = score_rows(self.scorer, list(asked.values()))
        gold = dict(zip(asked, scored, strict=True))
        preferences = []
        for c in comparisons:
            first, second = gold[c.prompt_id][c.first], gold[c.prompt_id][c.second]
            if first == second:
                continue
            chosen, rejected = (c.first, c.second) if first > second else (c.second, c.first)
            preferences.append(
                make_preference(asked[c.prompt_id], chosen, rejected, source="gold", annotator=self.name, round=round)
            )
        return preferences
