"""Text form of what the policy scores know."""

from typing import Any

from shfcas.evaluation.policy_knowledge import interval_text

MEASURES = {
    "agreement": "agrees with judges",
    "correlation": "correlation with gold",
    "finds_errors": "AUROC for errors",
    "finds_uncovered": "AUROC for uncovered",
}


def format_scores(result: dict[str, Any]) -> str:
    """Formats the result of `measure_scores`: the recommendation, a table, and the table of the original pairs."""
    text = [f"policy scores: {result['verdict']}", "", *_table(result)]
    if result["indistinguishable"]:
        text.append(f"not clearly worse than the recommended score: {', '.join(result['indistinguishable'])}")
    if original := result["original"]:
        text += ["", f"on the original pairs ({original['bias']}):", "", *_table(original)]
    return "\n".join(text)


def _table(result: dict[str, Any]) -> list[str]:
    """Lists the scores with the measures that are known for any of them."""
    rows = {**result["scores"], "reward_model": {"label": "for scale", **result["reward_model"]}}
    shown = [key for key in MEASURES if any(row.get(key, {}).get("value") is not None for row in rows.values())]
    head = "".join(f"  {MEASURES[key]:<22}" for key in shown)
    text = [f"intervals: {100 * result['level']:.1f} %", f"{'score':<18}  pairs{head}".rstrip()]
    for name, row in rows.items():
        cells = "".join(f"  {interval_text(row.get(key)):<22}" for key in shown)
        text.append(f"{name:<18}  {row['pairs']:>5}{cells}  {row['label']}")
    return text
