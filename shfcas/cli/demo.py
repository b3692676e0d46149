"""Show on a small language model what policy and reward model know, what labels add, and what PPO makes of it.

SmolLM2-135M-Instruct answers prompts on eight topics. A MiniLM reward model learns from annotators who are wrong on
three of them. The demo measures which policy score finds these topics, and what labels are worth as pairs and as
arbiters. Then PPO trains against the biased proxy, a second opinion without labels, and SHF-CAS labels as arbiters. The
gold reward is VADER's sentiment of the answer. It takes minutes on two CPU cores.
"""

from shfcas.demo.arms import DemoConfig as Config
from shfcas.demo.arms import run_demo
from shfcas.demo.page import text as format_results


def run(config: Config) -> str:
    """Runs the demo and returns its tables."""
    from pathlib import Path

    from shfcas.report import write_report

    results = run_demo(config)
    report = write_report(Path(config.output))
    return f"{format_results(results)}\n\nreport: {report}"
