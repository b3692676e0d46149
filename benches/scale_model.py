"""Cost model for 10^6, 10^8 and 10^10 answers, with constants that are measured here or named assumptions.

    python -m benches.scale_model [--write] [--set NAME=VALUE ...]

Prints the tables of docs/scale.md, then one line of JSON. --write puts them into the page, and --set changes an
assumption. The hours come from a simulation: shards of answers pass from stage to stage, and each resource processes
one task at a time. Training follows after all shards. The time of annotators is not included in the hours.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benches.targets import Results, read

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- written by python -m benches.scale_model -->\n", "<!-- end -->\n"
SIZES = (10**6, 10**8, 10**10)
SHARDS = 200
TRAINING = ("reward model", "policy")  # these wait for the labels of all shards
DAY = 24.0


class Value(NamedTuple):
    """Constant of the model with its source."""

    value: float
    unit: str
    source: str


ASSUMED = {
    "policy_parameters": Value(8e9, "weights", "an example: an 8B policy"),
    "reward_parameters": Value(8e9, "weights", "an example: a reward model of the same family"),
    "answers_a_prompt": Value(8, "answers", "default of `sampling.num_completions`"),
    "prompt_tokens": Value(256, "tokens", "an example"),
    "answer_tokens": Value(256, "tokens", "an example"),
    "token_bytes": Value(4.5, "bytes", "English text in a vocabulary of 50,000 to 130,000 tokens; assumed"),
    "text_compression": Value(2.5, "times", "zstd on English text; assumed"),
    "number_bytes": Value(
        37,
        "bytes",
        "columns of an answer, uncompressed: 8 each of log-probability, reward, PACS; 13 of lists, tokens, prompt",
    ),
    "gpu_flops": Value(989e12, "FLOP/s", "data sheet of NVIDIA's H100 SXM, bfloat16, dense"),
    "generation_use": Value(0.10, "of that", "batched generation reads weights and cache for every token; assumed"),
    "forward_use": Value(0.40, "of that", "long batches, one forward pass; assumed"),
    "training_use": Value(0.35, "of that", "8B models under FSDP; assumed"),
    "node_gpus": Value(8, "GPUs", "a typical node"),
    "node_cores": Value(96, "cores", "a typical node"),
    "node_storage": Value(2e9, "bytes/s", "a shared file system or object store, share of one node; assumed"),
    "gpu_hour": Value(2.5, "$", "rent of an H100 with its share of the node; assumed, market prices are 2 to 4"),
    "storage_month": Value(23.0, "$/TB", "list price of object stores; assumed; one month"),
    "judged_share": Value(0.001, "of prompts", "the label budget; chosen"),
    "judgement_seconds": Value(60, "s", "one comparison by one annotator; assumed"),
    "person_hour": Value(25.0, "$", "wage with overheads; assumed"),
    "person_day": Value(6, "hours", "of labelling per day; assumed"),
    "reward_epochs": Value(2, "passes", "default of `reward.num_train_epochs`"),
    "policy_share": Value(0.01, "of prompts", "prompts that PPO trains on; chosen"),
}


def measured(results: Results) -> dict[str, Value]:
    """Returns the constants from the committed results of the benches."""
    table = max(results["table"]["cases"], key=lambda case: case["answers"])
    cores = results["table"]["machine"]["cores"]
    training = {(c["case"], c.get("way")): c for c in results["training"]["cases"]}
    data, step = training["data", "shfcas"], training["policy step", "shfcas PPO"]
    scores = [
        case["rows/s"]
        for case in results["pacs"]["cases"]
        if (case["case"], case.get("N"), case["dtype"], case["threads"]) == ("conflict_scores", 8, "float64", 1)
    ]
    return {
        "core_scores": Value(
            table["answers/s"] / cores,
            "answers/s per core",
            f"`benches.table`, {table['answers']:,} answers: read, scored, compressed and written, without text",
        ),
        "core_conflicts": Value(
            scores[0] * 8, "answers/s per core", "`benches.pacs`: the op alone, 8 answers, float64"
        ),
        "policy_step": Value(
            step["ms"] / data["ms"],
            "times",
            "`benches.training`: a step of PPO, relative to sampling and rewarding as many answers",
        ),
    }


class Stage(NamedTuple):
    """Cost of a stage for a number of answers."""

    name: str
    resource: str  # GPUs, cores or storage
    hours: float  # hours of one node that does nothing else
    flops: float
    bytes: float


@dataclass(frozen=True)
class Plan:
    """Resources and costs for a number of answers."""

    answers: int
    prompts: float
    stages: list[Stage]
    gpu_hours: float
    core_hours: float
    judgements: float
    nodes: int
    hours: float
    people: int
    machine_dollars: float
    people_dollars: float

    @property
    def bytes(self) -> float:
        return sum(stage.bytes for stage in self.stages)

    @property
    def flops(self) -> float:
        return sum(stage.flops for stage in self.stages)


def stages(answers: float, c: Mapping[str, float]) -> list[Stage]:
    """Returns the stages of a round in order, with the cost of each on one node."""
    prompts = answers / c["answers_a_prompt"]
    text = c["prompt_tokens"] * prompts + c["answer_tokens"] * answers
    read = (c["prompt_tokens"] + c["answer_tokens"]) * answers  # a reward model reads each answer with its prompt
    node = c["gpu_flops"] * c["node_gpus"] * 3600
    sampling, rewards = 2 * c["policy_parameters"] * text, 2 * c["reward_parameters"] * read
    pairs = c["judged_share"] * prompts
    refining = 6 * c["reward_parameters"] * 2 * (c["prompt_tokens"] + c["answer_tokens"]) * pairs * c["reward_epochs"]
    sampled, rewarded = sampling / (node * c["generation_use"]), rewards / (node * c["forward_use"])
    policy = c["policy_share"] / c["answers_a_prompt"] * c["policy_step"]  # PPO answers each of its prompts once
    stored = text * c["token_bytes"] / c["text_compression"] + c["number_bytes"] * answers
    return [
        Stage("sampling", "GPUs", sampled, sampling, 0),
        Stage("rewards", "GPUs", rewarded, rewards, 0),
        Stage("conflicts", "cores", answers / (c["core_scores"] * c["node_cores"] * 3600), 0, 0),
        # Written once, then read by the conflicts and by the selection.
        Stage("reading and writing", "storage", 3 * stored / (c["node_storage"] * 3600), 0, stored),
        Stage("reward model", "GPUs", refining / (node * c["training_use"]), refining, 0),
        Stage("policy", "GPUs", policy * (sampled + rewarded), policy * (sampling + rewards), 0),
    ]


def simulated_hours(of: Iterable[Stage], nodes: int, shards: int = SHARDS) -> float:
    """Simulates the hours until the policy is trained; a resource processes one shard of one stage at a time."""
    order = list(of)
    free = {stage.resource: 0.0 for stage in order}
    end = 0.0
    for _ in range(shards):
        now = 0.0
        for stage in order:
            if stage.name not in TRAINING:
                now = max(now, free[stage.resource]) + stage.hours / nodes / shards
                free[stage.resource] = now
        end = max(end, now)
    return end + sum(stage.hours / nodes for stage in order if stage.name in TRAINING)


def busy(of: Iterable[Stage], resource: str) -> float:
    """Returns the hours of one node during which a resource is busy."""
    return sum(stage.hours for stage in of if stage.resource == resource)


def plan(answers: int, c: Mapping[str, float]) -> Plan:
    """Computes the numbers of nodes and annotators that finish within a day."""
    of = stages(answers, c)
    nodes = max(1, math.ceil(busy(of, "GPUs") / DAY))
    while simulated_hours(of, nodes) > DAY:
        nodes += 1
    prompts = answers / c["answers_a_prompt"]
    judgements = c["judged_share"] * prompts
    person_hours = judgements * c["judgement_seconds"] / 3600
    gpu_hours = busy(of, "GPUs") * c["node_gpus"]
    stored = sum(stage.bytes for stage in of)
    return Plan(
        answers,
        prompts,
        of,
        gpu_hours,
        busy(of, "cores") * c["node_cores"],
        judgements,
        nodes,
        simulated_hours(of, nodes),
        math.ceil(person_hours / c["person_day"]),
        gpu_hours * c["gpu_hour"] + stored / 1e12 * c["storage_month"],
        person_hours * c["person_hour"],
    )


# Output.


def number(value: float) -> str:
    """Formats a number with three significant digits."""
    if value == 0:
        return "0"
    if 0.01 <= abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:.2e}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def bytes_of(value: float) -> str:
    """Formats bytes with a decimal unit."""
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e6:.3g} MB"


def table(rows: list[list[str]]) -> str:
    """Formats a Markdown table; the first column is text, aligned left."""
    rule = [":--", *["--:"] * (len(rows[0]) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]]) + "\n"


def size_table(plans: list[Plan]) -> str:
    """Returns the table with a column for each number of answers."""
    lines: list[tuple[str, list[str]]] = [
        ("prompts", [number(p.prompts) for p in plans]),
        ("on disk", [bytes_of(p.bytes) for p in plans]),
        ("FLOP", [number(p.flops) for p in plans]),
        ("GPU hours", [number(p.gpu_hours) for p in plans]),
        ("core hours, conflicts", [number(p.core_hours) for p in plans]),
        ("node hours, storage", [number(busy(p.stages, "storage")) for p in plans]),
        ("nodes for a day", [number(p.nodes) for p in plans]),
        ("hours on these nodes", [f"{p.hours:.3g}" for p in plans]),
        ("labels", [number(p.judgements) for p in plans]),
        ("annotators for a day", [number(p.people) for p in plans]),
        ("$ for machines", [number(p.machine_dollars) for p in plans]),
        ("$ for annotators", [number(p.people_dollars) for p in plans]),
        ("$ per million prompts, machines", [number(p.machine_dollars / p.prompts * 1e6) for p in plans]),
        ("$ per million prompts, annotators", [number(p.people_dollars / p.prompts * 1e6) for p in plans]),
    ]
    head = ["", *(f"10^{round(math.log10(p.answers))} answers" for p in plans)]
    return table([head, *([name, *values] for name, values in lines)])


def stage_table(of: list[Stage], answers: float) -> str:
    """Returns the table of the cost of a million answers on one node."""
    busiest = max(stage.hours for stage in of)
    rows = [["stage", "needs", "FLOP", "seconds of a node", "relative to the longest"]]
    for s in of:
        rows.append([s.name, s.resource, number(s.flops), number(s.hours * 3600), number(s.hours / busiest)])
    return table(rows)


def constant_table(constants: Mapping[str, Value]) -> str:
    """Returns the table of all constants by name."""
    rows = [["name", "value", "unit", "source"]]
    rows += [[f"`{name}`", number(v.value), v.unit, v.source] for name, v in constants.items()]
    return table(rows)


def text(constants: Mapping[str, Value]) -> str:
    """Returns the generated part of the page."""
    c = {name: value.value for name, value in constants.items()}
    plans = [plan(answers, c) for answers in SIZES]
    found, assumed = ({n: v for n, v in constants.items() if (n in ASSUMED) == side} for side in (False, True))
    return "\n".join(
        [
            "### Round by size\n",
            size_table(plans),
            "### One million answers on one node\n",
            stage_table(plans[0].stages, 1e6),
            "### Measured\n",
            constant_table(found),
            "### Assumed\n",
            constant_table(assumed),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="change constants")
    given = parser.parse_args()
    constants = {**measured(read(RESULTS)), **ASSUMED}
    for change in given.set:
        name, _, value = change.partition("=")
        if name not in constants:
            parser.error(f"--set: expected one of {', '.join(constants)}, got {name}")
        constants[name] = constants[name]._replace(value=float(value), source="--set")
    print(text(constants))
    c = {name: value.value for name, value in constants.items()}
    print(json.dumps({"bench": "scale_model", "constants": c, "plans": [plan(n, c).__dict__ for n in SIZES]}))
    if given.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(before + BEGIN + "\n" + text(constants) + "\n" + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
