"""Run the whole loop on a small language model, in minutes on two CPU cores.

SmolLM2-135M-Instruct is fine-tuned on good answers. A MiniLM reward model learns from annotators who are wrong on three
of eight topics. PPO then trains against it without feedback, after random feedback, and after SHF-CAS feedback with the
same number of labels. The gold reward is VADER's sentiment of the answer.
"""

from shfcas.demo.arms import DemoConfig as Config
from shfcas.demo.arms import run_demo, table


def run(config: Config) -> str:
    """Runs the demo and returns its table."""
    from pathlib import Path

    from shfcas.report import write_report

    results = run_demo(config)
    report = write_report(Path(config.output))
    return f"{table(results)}\n\nreport: {report}"
