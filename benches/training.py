"""A round's data and a policy step on SmolLM2-135M, compared with other implementations.

    python -m benches.training [--quick] [--threads T]

Data: answers to prompts, their log-probabilities and rewards, with 64 answers at once, or 8. `one at a time` is the
method of the paper's scripts, with a second forward pass and the whole log-softmax; `second pass` is the same in
batches of 64. Policy step: answers, rewards and one pass of updates of a LoRA adapter, compared with a step of TRL's
RLOO, which has no critic. Update: loss and gradients of the same tokens, compared with TRL's RLOO and GRPO. Every way
generates the same number of answers and tokens, and runs in its own process, after a small warm-up run. MB is the peak
beyond the loaded models. `times as fast` and `times the MB` are relative to the last way of the stage. Needs the demo's
models.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch

from benches.bench import Case, Settings, report, settings
from benches.memory import Spent, spent
from benches.stopwatch import Stopwatch
from benches.training_ways import Size, ppo_trainer, prepare

FULL, QUICK, SMALL = Size(8, 8, 32), Size(2, 8, 8), Size(1, 2, 2)
STAGES = {  # the last way is the one that the others are compared with
    "data": ("shfcas", "shfcas, 8 at once", "second pass", "one at a time"),
    "policy step": ("shfcas PPO", "TRL RLOO"),
    "update": ("shfcas PPO update", "TRL RLOO update", "TRL GRPO update"),
}


def main() -> None:
    chosen = settings(__doc__, ["float32"], ["float32"])
    report("training", tables(chosen), chosen)


def tables(chosen: Settings) -> Iterator[list[Case]]:
    """Yields a table for each stage, and one for the parts of the policy step."""
    size, rounds = (QUICK, 1) if chosen.quick else (FULL, 2)
    threads = chosen.threads[-1]
    about = {"answers": size.total, "tokens": size.tokens, "dtype": "float32", "threads": threads}
    for stage, ways in STAGES.items():
        yield compare_ways(stage, ways, size, rounds, about)
    torch.set_num_threads(threads)
    yield parts_of_a_step(size, about)


def compare_ways(stage: str, ways: tuple[str, ...], size: Size, rounds: int, about: Case) -> list[Case]:
    """Measures the ways of a stage in turns."""
    runs: dict[str, list[Spent]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            runs[way].append(spent(prepare, (way, SMALL), (way, size), about["threads"]))
    cases = []
    for way in ways:
        times = [run.seconds for run in runs[way]]
        case = {"case": stage, "way": way, **about, "ms": statistics.median(times) * 1e3, "least ms": min(times) * 1e3}
        case |= {"answers/s": size.total / case["ms"] * 1e3, "MB": statistics.median(run.mb for run in runs[way])}
        cases.append(case)
    last = cases[-1]
    for case in cases[:-1]:
        case |= {"times as fast": last["ms"] / case["ms"], "times the MB": case["MB"] / last["MB"]}
    return cases


def parts_of_a_step(size: Size, about: Case) -> list[Case]:
    """Measures the parts of shfcas's policy step, which add up to the whole step."""
    from shfcas.training.ppo.value_head import causal_lm

    prepare("shfcas PPO", SMALL)()
    trainer, watch = ppo_trainer(size), Stopwatch()
    collector = trainer.collector
    watch.follow(causal_lm(collector.model.policy), "generate", "generation")
    watch.follow(collector, "_sample", "log-probabilities and values")
    watch.follow(collector.reference, "logprobs", "log-probabilities of the reference")
    watch.follow(collector, "scorer", "rewards")
    watch.follow(trainer, "compute_loss", "updates: forward")
    watch.follow(trainer.accelerator, "backward", "updates: backward")
    with watch.measure("optimizer and the rest"):
        trainer.train()
    total = sum(watch.seconds.values())
    return [
        {"case": "parts of a policy step", "part": part, **about, "ms": seconds * 1e3, "least ms": seconds * 1e3}
        | {"share": seconds / total}
        for part, seconds in sorted(watch.seconds.items(), key=lambda item: -item[1])
    ]


if __name__ == "__main__":
    main()
