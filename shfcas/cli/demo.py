"""Run the whole loop on a small language model, in minutes on two CPU cores.

SmolLM2-135M-Instruct is fine-tuned on good answers. A MiniLM reward model learns from annotators who are wrong on three
of eight topics. PPO then trains against it without feedback, after random feedback, and after SHF-CAS feedback with the
same number of labels. The gold reward is VADER's sentiment of the answer.
"""

from dataclasses import dataclass

from shfcas.cli._approval import approval, without_flags, yes_option
from shfcas.demo.arms import DemoConfig, run_demo, table


@dataclass
class Config(DemoConfig):
    """`shfcas demo`."""

    yes: bool = yes_option()


def run(config: Config) -> str:
    """Runs the demo and returns its table."""
    from pathlib import Path

    from shfcas.report import write_report

    results = run_demo(without_flags(config, DemoConfig), approve=approval("demo", config.yes))
    report = write_report(Path(config.output))
    return f"{table(results)}\n\nreport: {report}"
