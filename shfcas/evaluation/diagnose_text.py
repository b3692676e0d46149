"""A diagnosis as people read it."""

from typing import Any


def told_auroc(found: dict[str, Any]) -> str:
    """An AUROC with its interval, as text."""
    return "AUROC unknown" if found["value"] is None else f"AUROC {told(found)}"


def told(found: dict[str, Any], digits: int = 2) -> str:
    """A value with its interval, as text."""
    if found["value"] is None:
        return "-"
    return f"{found['value']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def lines(result: dict[str, Any]) -> str:
    """The result as text: the verdict, then the numbers behind it."""
    text = [result["verdict"], ""]
    text.append(
        f"{result['pairs']} judged pairs of {result['prompts']} prompts; the reward model has "
        f"{told(result['errors'])} of them wrong"
    )
    if result["left_out"]:
        text.append("left out: " + ", ".join(f"{count} ({why})" for why, count in result["left_out"].items()))
    text += ["", "signal              AUROC [95 %]        share of errors among the first pairs"]
    for name, found in result["signals"].items():
        first = ", ".join(f"{p['errors']['value']:.2f} of {p['budget']}" for p in found["precision"])
        text.append(f"{name:<18}  {told(found['auroc']):<18}  {first}")
    if "uncovered" in result:
        text += ["", "finds pairs of uncovered groups:"]
        text += [f"  {name:<16}  {told_auroc(found)}" for name, found in result["uncovered"].items()]
    if "slices" in result:
        width = max(len(name) for name in result["slices"])
        text += ["", f"{'group':<{width}}  pairs  wrong [95 %]        AUROC of the Kendall distance, of abs(PACS)"]
    for name, part in result.get("slices", {}).items():
        aurocs = ", ".join(told(part["auroc"][key]) for key in ("kendall_distance", "abs_pacs"))
        text.append(f"{name:<{width}}  {part['pairs']:>5}  {told(part['errors']):<18}  {aurocs}")
    return "\n".join(text)
