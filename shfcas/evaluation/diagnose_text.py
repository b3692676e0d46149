"""Text form of a diagnosis."""

from typing import Any

from shfcas.utils.numbers import fixed, interval
from shfcas.utils.text import one_line


def format_auroc(auroc: dict[str, Any]) -> str:
    """Formats an AUROC with its interval."""
    return "AUROC unknown" if auroc["value"] is None else f"AUROC {interval(auroc, 2)}"


def format_diagnosis(result: dict[str, Any]) -> str:
    """Formats the result of `diagnose`: the verdict, then the numbers behind it."""
    text = [result["verdict"], ""]
    text.append(
        f"{result['pairs']} judged pairs of {result['prompts']} prompts; the reward model orders "
        f"{interval(result['errors'], 2)} of them wrongly"
    )
    if result["left_out"]:
        text.append("left out: " + ", ".join(f"{count} ({why})" for why, count in result["left_out"].items()))
    text += ["", "signal              AUROC [95 %]        share of errors among the top pairs"]
    for name, signal in result["signals"].items():
        top = ", ".join(f"{fixed(p['errors']['value'], 2)} of {p['budget']}" for p in signal["precision"])
        text.append(f"{name:<18}  {interval(signal['auroc'], 2):<18}  {top}")
    if "uncovered" in result:
        text += ["", "finds pairs of uncovered groups:"]
        text += [f"  {one_line(name):<16}  {format_auroc(auroc)}" for name, auroc in result["uncovered"].items()]
    if "slices" in result:
        width = max(len(one_line(name)) for name in result["slices"])
        text += ["", f"{'group':<{width}}  pairs  wrong [95 %]        AUROC of the Kendall distance, of abs(PACS)"]
    for name, part in result.get("slices", {}).items():
        aurocs = ", ".join(interval(part["auroc"][key], 2) for key in ("kendall_distance", "abs_pacs"))
        text.append(f"{one_line(name):<{width}}  {part['pairs']:>5}  {interval(part['errors'], 2):<18}  {aurocs}")
    return "\n".join(text)
