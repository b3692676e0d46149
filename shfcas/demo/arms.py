"""`shfcas demo`: one biased proxy, three kinds of feedback at the same budget, one table."""

from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from shfcas.data.candidates import read_candidates
from shfcas.demo.sentiment import BLIND_TOPICS
from shfcas.evaluation.metrics import detection
from shfcas.evaluation.statistics import auroc
from shfcas.feedback import read_queue
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.loop import Loop
from shfcas.pipeline.run_directory import RunDirectory
from shfcas.rewards.table import score_rows
from shfcas.utils.config import Options, build, option, read_yaml, to_dict, with_default
from shfcas.utils.files import read_numbers, write_json

ARMS = {
    "no_feedback": "PPO, biased proxy",
    "random": "PPO, random feedback",
    "shf_cas": "PPO, SHF-CAS feedback",
}
ASKED = {"random": "random", "shf_cas": "SHF-CAS"}


@dataclass
class DemoConfig(Options):
    """Settings of the demo; shfcas/demo/demo.yaml has all others."""

    output: str = with_default(RunConfig, "output", "runs/demo")
    prompts: int = option(64, "prompts to sample, select and train on (at most 96)", ge=8, le=96, common=True)
    budget: int = option(100, "label budget of each round of each arm, in comparisons", ge=1, common=True)
    rounds: int = with_default(RunConfig, "rounds", 1)
    feedback: str = option(
        "gold",
        "who labels: the gold reward, or you, on a page, for the arm SHF-CAS alone",
        ("gold", "human"),
        common=True,
    )
    human: HumanConfig = with_default(RunConfig, "human", HumanConfig)
    finish_with_what_we_have: bool = with_default(RunConfig, "finish_with_what_we_have", False)
    seed: int = with_default(RunConfig, "seed", 0)


def run_config(config: DemoConfig) -> RunConfig:
    """Returns the configuration of the demo's loop."""
    with resources.as_file(resources.files(__package__) / "demo.yaml") as path:
        values = read_yaml(path)
    values.update(output=config.output, max_prompts=config.prompts, rounds=config.rounds, seed=config.seed)
    values.update(feedback=config.feedback, human=to_dict(config.human))
    values["finish_with_what_we_have"] = config.finish_with_what_we_have
    values["selection"]["budget"] = config.budget
    return build(RunConfig, values)


def arms(settings: RunConfig) -> dict[str, str]:
    """Returns the arms to run. People label for SHF-CAS alone: a random baseline would double their work."""
    return {arm: label for arm, label in ARMS.items() if arm != "random" or settings.feedback == "gold"}


def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Runs or resumes the arms; writes results.json and returns its content."""
    settings = run_config(config)
    settings.check_inputs()
    run = RunDirectory(config.output, to_dict(settings), config.seed)
    run.begin()
    loop = Loop(run, settings)
    start = loop.start()
    conflicts = loop.score(start.state, loop.sample(start.state, "round-1"), "round-1")
    for arm in arms(settings):
        state = start.state
        selection = None if arm == "no_feedback" else replace(settings.selection, strategy=arm)
        for number in range(1, config.rounds + 1):
            shared = conflicts if number == 1 else None  # all arms ask about the same answers in the first round
            state = loop.round(state, number, start=start, selection=selection, arm=arm, conflicts=shared)
    results = {
        "policies": policies(run.path, config.rounds, arms(settings)),
        "detection": blind_spot_detection(loop, conflicts),
        "labels": {
            arm: labels_in_blind_topics(run.path, arm, conflicts) for arm in arms(settings) if arm != "no_feedback"
        },
        "seconds": round(sum(stage.seconds for stage in run.manifest.stages.values())),
    }
    write_json(run.path / "results.json", results)
    return results


def policies(path: Path, rounds: int, arms: dict[str, str]) -> list[dict[str, Any]]:
    """Returns one row per policy: the base, and each arm after its last round."""
    files = {"base policy (SFT)": path / "round-0" / "metrics.json"}
    files.update({label: path / arm / f"round-{rounds}" / "metrics.json" for arm, label in arms.items()})
    rows = []
    for label, file in files.items():
        metrics = read_numbers(file)
        groups = metrics["groups"]
        accuracy = {
            kind: float(
                np.mean([g["pair_accuracy"] for topic, g in groups.items() if (topic in BLIND_TOPICS) == blind])
            )
            for kind, blind in (("sound", False), ("blind", True))
        }
        rows.append({"policy": label, **metrics, "pair_accuracy_by_topic": accuracy})
    return rows


def blind_spot_detection(loop: Loop, conflicts: Path) -> dict[str, float]:
    """Measures how well conflict finds prompts of blind topics and misjudged answers (AUROC; 0.5 is chance)."""
    table = read_candidates(conflicts)
    blind = [topic in BLIND_TOPICS for topic in table.column("topic")]
    found = detection(table, score_rows(loop.gold, table.rows()))
    return {
        "kendall_finds_blind_topics": auroc(table.column("kendall_distance"), blind),
        "mean_abs_pacs_finds_blind_topics": auroc(table.column("mean_abs_pacs"), blind),
        "pacs_finds_wrong_answers": found["pacs_auroc"],
        "kendall_finds_inverted_prompts": found["kendall_auroc"],
    }


def labels_in_blind_topics(path: Path, arm: str, conflicts: Path) -> dict[str, Any]:
    """Counts the first round's comparisons about blind topics."""
    table = read_candidates(conflicts)
    topics = dict(zip(table.column("prompt_id"), table.column("topic"), strict=True))
    queue = read_queue(path / arm / "round-1" / "queue.jsonl")
    blind = sum(topics[c.prompt_id] in BLIND_TOPICS for c in queue)
    return {"comparisons": len(queue), "blind": blind, "share": blind / len(queue)}


def table(results: dict[str, Any]) -> str:
    """Formats the comparison as text."""
    header = [
        "policy",
        "gold reward [95 %]",
        "win rate",
        "proxy",
        "KL",
        "KT",
        "|PACS|",
        "RM acc. sound",
        "blind",
    ]
    lines = [header]
    for row in results["policies"]:
        gold, accuracy = row["gold_reward"], row["pair_accuracy_by_topic"]
        lines.append(
            [
                row["policy"],
                f"{gold['mean']:.3f} [{gold['low']:.3f}, {gold['high']:.3f}]",
                f"{row['win_rate']['mean']:.3f}",
                f"{row['proxy_reward']['mean']:.2f}",
                f"{row['kl']:.2f}",
                f"{row['kendall_distance']:.3f}",
                f"{row['mean_abs_pacs']:.3f}",
                f"{accuracy['sound']:.3f}",
                f"{accuracy['blind']:.3f}",
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    found = results["detection"]
    labels = results["labels"]
    return "\n".join(
        [
            text[0],
            "-" * len(text[0]),
            *text[1:],
            "",
            "Kendall distance finds prompts of blind topics: "
            f"AUROC {found['kendall_finds_blind_topics']:.2f}; abs(PACS) finds misjudged answers: "
            f"AUROC {found['pacs_finds_wrong_answers']:.2f} (0.5 is chance)",
            "labels about blind topics: "
            + ", ".join(f"{name} {labels[arm]['share']:.0%}" for arm, name in ASKED.items() if arm in labels)
            + f" of {labels['shf_cas']['comparisons']}",
            "policy score: log pi_sft / pi_base (logprob_ratio); plain log-probabilities say little at this size",
            f"all stages took {results['seconds'] / 60:.1f} minutes",
        ]
    )
