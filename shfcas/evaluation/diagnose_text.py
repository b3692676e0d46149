"""Text form of a diagnosis."""

from typing import Any


def format_auroc(auroc: dict[str, Any]) -> str:
    """Formats an AUROC with its interval."""
    return "AUROC unknown" if auroc["value"] is None else f"AUROC {format_interval(auroc)}"


def format_interval(interval: dict[str, Any], digits: int = 2) -> str:
    """Formats a value with its interval; `-` if there is none."""
    if interval["value"] is None:
        return "-"
    return f"{interval['value']:.{digits}f} [{interval['low']:.{digits}f}, {interval['high']:.{digits}f}]"


def format_diagnosis(result: dict[str, Any]) -> str:
    """Formats the result of `diagnose`: the verdict, then the numbers behind it."""
    text = [result["verdict"], ""]
    text.append(
        f"{result['pairs']} judged pairs of {result['prompts']} prompts; the reward model orders "
        f"{format_interval(result['errors'])} of them wrongly"
    )
    if result["left_out"]:
        text.append("left out: " + ", ".join(f"{count} ({why})" for why, count in result["left_out"].items()))
    text += ["", "signal              AUROC [95 %]        share of errors among the top pairs"]
    for name, signal in result["signals"].items():
        top = ", ".join(f"{p['errors']['value']:.2f} of {p['budget']}" for p in signal["precision"])
        text.append(f"{name:<18}  {format_interval(signal['auroc']):<18}  {top}")
    if "uncovered" in result:
        text += ["", "finds pairs of uncovered groups:"]
        text += [f"  {name:<16}  {format_auroc(auroc)}" for name, auroc in result["uncovered"].items()]
    if "slices" in result:
        width = max(len(name) for name in result["slices"])
        text += ["", f"{'group':<{width}}  pairs  wrong [95 %]        AUROC of the Kendall distance, of abs(PACS)"]
    for name, part in result.get("slices", {}).items():
        aurocs = ", ".join(format_interval(part["auroc"][key]) for key in ("kendall_distance", "abs_pacs"))
        text.append(f"{name:<{width}}  {part['pairs']:>5}  {format_interval(part['errors']):<18}  {aurocs}")
    return "\n".join(text)
