"""Counts of the labels of a round, whoever gave them."""

from pathlib import Path

from shfcas.data.preferences import read_preferences
from shfcas.feedback import read_queue
from shfcas.feedback.annotation.aggregation import verdicts
from shfcas.feedback.annotation.config import settings_of_run
from shfcas.feedback.annotation.store import STORE, Store
from shfcas.utils.files import read_object


def label_counts(run: Path, folder: Path, feedback: str, budget: int) -> dict[str, int]:
    """Counts the labels of a round.

    Args:
        run: the run directory.
        folder: the folder of the round, which holds its queue and its preferences.
        feedback: who labelled: gold, judge or human.
        budget: the comparisons that the configuration allows per round.

    Returns:
        `asked`: selected comparisons. `answered`: those with a verdict, ties among them. `ties`: those without a
        preferred answer; of a judge also those whose verdict depends on the order. `budget`.
    """
    asked = len(read_queue(folder / "queue.jsonl"))
    preferred = len(read_preferences(folder / "preferences.jsonl"))
    ties = asked - preferred  # gold judges all, and equal rewards are a tie
    report = folder / "judge.json"
    if feedback == "judge" and report.exists():
        judge = read_object(report)
        ties = judge["ties"] + judge["order_disagreements"]
    elif feedback == "human":
        queue = folder.relative_to(run).as_posix()
        with Store(run / STORE, read_only=True) as store:
            reached = verdicts(store.items(queue), store.judgements(queue), settings_of_run(run))
        ties = sum(verdict.state in ("tie", "both_bad") for verdict in reached.values())
    return {"asked": asked, "answered": preferred + ties, "ties": ties, "budget": budget}
