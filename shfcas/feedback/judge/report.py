"""The outcome of each comparison that a judge saw, and counts and costs of all."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from shfcas.feedback.judge.cache import Reply
from shfcas.feedback.judge.config import JudgeConfig

PREFERRED = ("first", "second")
_MEANING = {"A": ("first", "second"), "B": ("second", "first"), "TIE": ("tie", "tie")}


def outcome(as_asked: Reply | None, swapped: Reply | None) -> str | None:
    """Returns the outcome of one comparison from two verdicts.

    Args:
        as_asked: the reply with the comparison's first answer as A; None if there is no verdict.
        swapped: the reply with its second answer as A.

    Returns:
        `first` or `second` if both prefer that answer, `tie` if either is a tie, `order` if both prefer the answer in
        the same position, None if a verdict is missing.
    """
    if as_asked is None or swapped is None or as_asked.verdict is None or swapped.verdict is None:
        return None
    sides = {_MEANING[as_asked.verdict][0], _MEANING[swapped.verdict][1]}
    if "tie" in sides:
        return "tie"
    return sides.pop() if len(sides) == 1 else "order"


def report(
    outcomes: Sequence[str], verdicts: Sequence[str | None], replies: Sequence[Reply], settings: JudgeConfig
) -> dict[str, Any]:
    """Returns counts and costs of a judge's replies, including those that were in the cache before.

    Args:
        outcomes: the outcome of each comparison, see `outcome`; or `malformed`, `failed`, `unasked`.
        verdicts: the verdicts on both orders of all comparisons, in any order.
        replies: all replies, including malformed ones.
        settings: the prices.
    """
    counts, said = Counter(outcomes), Counter(verdicts)
    decided = said["A"] + said["B"]
    uncounted = sum(reply.input_tokens is None or reply.output_tokens is None for reply in replies)
    sent = sum(reply.input_tokens or 0 for reply in replies)
    received = sum(reply.output_tokens or 0 for reply in replies)
    cost = None
    if settings.price_per_million_input is not None and settings.price_per_million_output is not None and not uncounted:
        cost = (sent * settings.price_per_million_input + received * settings.price_per_million_output) / 1e6
    return {
        "comparisons": len(outcomes),
        "preferences": counts["first"] + counts["second"],
        "ties": counts["tie"],
        "order_disagreements": counts["order"],
        "malformed": counts["malformed"],
        "failed": counts["failed"] + counts["unasked"],
        "prefers_shown_first": said["A"] / decided if decided else None,
        "malformed_replies": sum(reply.verdict is None for reply in replies),
        "replies_without_usage": uncounted,
        "input_tokens": sent,
        "output_tokens": received,
        "cost": cost,
    }


def summary(report: dict[str, Any]) -> str:
    """Returns a report on one line."""
    cost = "" if report["cost"] is None else f", cost {report['cost']:.4g}"
    return (
        f"{report['model']} judged {report['comparisons']} comparisons: {report['preferences']} preferences, "
        f"{report['ties']} ties, {report['order_disagreements']} depend on the order, "
        f"{report['malformed'] + report['failed']} without a verdict ({report['asked']} asked, "
        f"{report['cached']} from the cache, {report['input_tokens']} + {report['output_tokens']} tokens{cost})"
    )
