"""Show on a small language model what policy and reward model know, what labels add, and what PPO makes of it.

SmolLM2-135M-Instruct answers prompts on eight topics. A MiniLM reward model learns from annotators who are wrong on
three of them. The demo measures which policy score finds these topics, and what labels are worth as pairs and as
arbiters. Then PPO trains against the biased proxy, a second opinion without labels, and SHF-CAS labels as arbiters. The
gold reward is VADER's sentiment of the answer. It takes minutes on two CPU cores.
"""

from dataclasses import dataclass

from shfcas.cli._approval import approval, without_flags, yes_option
from shfcas.demo.arms import DemoConfig, run_demo
from shfcas.demo.page import text as format_results


@dataclass
class Config(DemoConfig):
    """`shfcas demo`."""

    yes: bool = yes_option()


def run(config: Config) -> str:
    """Runs the demo and returns its tables."""
    from pathlib import Path

    from shfcas.report import write_report

    results = run_demo(without_flags(config, DemoConfig), approve=approval("demo", config.yes))
    report = write_report(Path(config.output))
    return f"{format_results(results)}\n\nreport: {report}"
