"""Make a bench of `shfcas.compare` from a task's numbers, with a new split, proxy and blind spot for every seed."""

from dataclasses import dataclass

import numpy as np

from experiments.annotators import flipped_labels
from experiments.numbers import Numbers
from shfcas.compare import AnswerSet, Bench, Cell, HeadFit, Label, RefineHead, judge, measure
from shfcas.compare.cells import NONE, account
from shfcas.evaluation.metrics import detection, z_scores
from shfcas.evaluation.statistics import auroc
from shfcas.selection import SelectionConfig, select
from shfcas.utils.seeds import derive_seed

INFORMED = "informed:"  # a simulated policy score, and its correlation with gold within a prompt
BASE = "base_logprob"
TUNED = "tuned:"  # log-ratio of a policy fine-tuned on this number of examples to the policy before
MEMBERS = 5
L2, NEW_PAIR_WEIGHT = 30.0, 3.0
BLIND_GROUPS = {"sentiment": 3, "safety": 2}  # of 8 topics, of 5 categories; in `helpfulness` the blind group is given
SHORTER = "shorter is better"
PAIRS = 640
FIRST = {"sentiment": 80, "safety": 72}  # number of prompts that were looked at before the others were sampled
PARTS = 20  # equal parts of all prompts, the same for all seeds
THRESHOLDS = {"kendall_threshold": "q0.5", "pacs_threshold": "q0.1", "mean_pacs_threshold": "q0.5"}
STRATEGIES = (
    "random",
    "shf_cas",
    "kendall",
    "pacs",
    "mean_pacs",
    "reward_margin",
    "least_margin",
    "reward_variance",
    "bald",
    "rso",
)


@dataclass(frozen=True)
class Setting:
    """The settings of one bench.

    Attributes:
        task: `sentiment`, `safety` or `helpfulness`.
        bias: the bias of the proxy's annotators; see `annotators.flipped_labels`.
        strength: the strength of the bias.
        answers: answers per prompt; half of them sampled at each temperature, if there are two.
        temperature: `low`, `high`, or `mixed`.
        policy: the score that rewards are compared with: a policy score of shfcas; `base_logprob` for the
            log-probability under the policy before its fine-tuning; `tuned:` and a number of examples for the ratio of
            a policy fine-tuned on that many; or `informed:` and a correlation with gold.
        rounds: number of rounds that share the label budget.
        left_out: which of the `PARTS` of the prompts is left out, after the split; -1 leaves out none.
        prompts: `all`, `first` for those that were looked at before the others were sampled, or `later` for the others.
    """

    task: str
    bias: str
    strength: float = 1.0
    answers: int = 8
    temperature: str = "mixed"
    policy: str = "logprob_ratio"
    rounds: int = 1
    left_out: int = -1
    prompts: str = "all"


def some_answers(numbers: Numbers, count: int, temperature: str) -> Numbers:
    """Return the first answers of each prompt at one temperature, or half of them at each."""
    levels = np.unique(numbers.temperature)
    if len(levels) == 1:
        return numbers
    shares = {"low": (count, 0), "high": (0, count), "mixed": (count // 2, count - count // 2)}[temperature]
    chosen = np.zeros(len(numbers.gold), bool)
    for start, end in zip(numbers.offsets, numbers.offsets[1:], strict=False):
        for level, share in zip(levels, shares, strict=True):
            chosen[start + (numbers.temperature[start:end] == level).nonzero()[0][:share]] = True
    return numbers.answers(chosen)


@dataclass(frozen=True)
class Experiment:
    """A bench, and facts about it before any label.

    Attributes:
        bench: the bench of one seed.
        facts: how good the proxy is, how much the policy's score knows, and what conflicts find.
        seed: the seed.
        words: the length of each held-out answer in words.
    """

    bench: Bench
    facts: dict[str, float]
    seed: int
    words: np.ndarray

    def run(self, strategy: str, budget: int, rounds: int = 1) -> dict[str, float]:
        """Run one cell and return its metrics by `metric` or `metric|group`."""
        cell = Cell(strategy, budget, self.seed)
        queue, labels = [], []
        if strategy != NONE:
            queue, labels = in_rounds(self.bench, cell, rounds)
        rewards = self.bench.refine(labels, 0)
        held_out = self.bench.held_out
        starts = zip(held_out.offsets, held_out.offsets[1:], strict=False)
        best = np.array([start + rewards[start:end].argmax() for start, end in starts])
        metrics = [*measure(self.bench, rewards), *account(self.bench, queue, labels)]
        found = {"|".join(filter(None, (m["metric"], m["group"]))): m["value"] for m in metrics}
        kept = {key: value for key, value in found.items() if "|" not in key or key.split("|")[1].startswith("(")}
        return {**kept, "best_of_n_words": float(self.words[best].mean())}


def in_rounds(bench: Bench, cell: Cell, rounds: int) -> tuple[list, list[Label]]:
    """Return the comparisons and labels when the reward model is refined after each part of the budget."""
    queue, labels, asked, pool = [], [], set(), bench.pool
    for number in range(rounds):
        budget = cell.budget * (number + 1) // rounds - cell.budget * number // rounds
        now = pool if number == 0 else rescored(bench, pool, labels)
        # Some pairs were asked in earlier rounds, so select more than are needed.
        found = select(now.rows, settings(cell.strategy, budget + len(asked)), derive_seed("draw", cell.seed))
        fresh = [c for c in found if key(c) not in asked][:budget]
        asked |= {key(c) for c in fresh}
        queue += fresh
        labels = judge(bench, queue, cell.seed)
    return queue, labels


def key(comparison: object) -> tuple:
    """Return a key of a pair that does not depend on its order."""
    return comparison.prompt_id, frozenset((comparison.first, comparison.second))


def settings(strategy: str, budget: int) -> SelectionConfig:
    """Return a strategy with the thresholds of all experiments; `shf_cas/random` has another pairing."""
    strategy, _, pairing = strategy.partition("/")
    return SelectionConfig(strategy=strategy, budget=budget, pairing=pairing or "extreme", **THRESHOLDS)


def rescored(bench: Bench, pool: AnswerSet, labels: list[Label]) -> AnswerSet:
    """Return the pool with the refined rewards and their conflicts; a committee stays as it was."""
    assert isinstance(bench.refine, RefineHead)
    rewards = bench.refine.head(labels)(pool.features)
    bounds = list(zip(pool.offsets, pool.offsets[1:], strict=False))
    rows = [
        {**row, "rewards": rewards[start:end].tolist()} for row, (start, end) in zip(pool.rows, bounds, strict=True)
    ]
    gold = [pool.gold[start:end] for start, end in bounds]
    return AnswerSet.from_rows(rows, gold, pool.features, pool.table.metadata["policy_score"])


def experiment(numbers: Numbers, setting: Setting, seed: int, committee: bool = True) -> Experiment:
    """Make the bench of one seed, which determines the split, the blind groups, the proxy's pairs and all draws.

    Args:
        numbers: the task.
        setting: the settings of the bench.
        seed: the seed.
        committee: whether heads are also fitted to resampled pairs, which some strategies need.
    """
    numbers = some_answers(numbers, setting.answers, setting.temperature)
    rng = np.random.default_rng(derive_seed("split", setting.task, seed))
    names = np.unique(numbers.groups)
    blind = [SHORTER]
    if setting.task in BLIND_GROUPS:
        present = np.array([name for name in names if name in set(numbers.pair_groups)])
        blind = sorted(rng.choice(present, BLIND_GROUPS[setting.task], replace=False).tolist())
    order = rng.permutation(np.arange(len(numbers.prompts))[which_prompts(setting)])
    own = numbers.pair_prompts >= 0  # pairs about these prompts: the proxy then gets prompts of its own
    shares = (0.4, 0.75) if own.any() else (0.0, 2 / 3)
    training, pool, held_out = np.split(order, [round(share * len(order)) for share in shares])
    parts = np.random.default_rng(derive_seed("parts", setting.task)).permutation(len(numbers.prompts)) % PARTS
    pool, held_out = (prompts[parts[prompts] != setting.left_out] for prompts in (pool, held_out))
    usable = np.isin(numbers.pair_prompts, training) | ~own
    drawn = np.flatnonzero(usable)
    drawn = rng.permutation(drawn)[:PAIRS]
    keep, turn = flipped_labels(
        setting.bias,
        setting.strength,
        np.isin(numbers.pair_groups[drawn], blind),
        numbers.pair_words[drawn],
        seed,
    )
    pairs = numbers.pairs[drawn].astype(np.float64) * np.where(turn, -1, 1)[:, None]
    pairs = pairs[keep]

    scale = numbers.features
    nothing = np.zeros((0, scale.shape[1]))
    fit = HeadFit(scale, pairs, l2=L2)
    rewards = fit(nothing)(numbers.features)
    columns: dict[str, np.ndarray] = {}
    if committee:
        members = []
        for _ in range(MEMBERS):
            again = pairs[rng.integers(0, len(pairs), len(pairs))]
            members.append(HeadFit(scale, again, l2=L2)(nothing)(numbers.features))
        columns["member_rewards"] = np.stack(members, axis=1)
        columns["reward_variances"] = columns["member_rewards"].var(axis=1)
    policy, score = policy_columns(numbers, setting.policy, seed)
    columns |= policy
    parts = []
    for chosen in (np.sort(pool), np.sort(held_out)):
        rows, at = [], []
        for i in chosen:
            here = slice(numbers.offsets[i], numbers.offsets[i + 1])
            at.append(np.arange(here.start, here.stop))
            rows.append(
                {
                    "prompt_id": str(numbers.prompts[i]),
                    "prompt": str(numbers.prompts[i]),
                    "group": str(numbers.groups[i]),
                    "completions": [str(t) for t in numbers.texts[here]],
                    "rewards": rewards[here].tolist(),
                    **{name: values[here].tolist() for name, values in columns.items()},
                }
            )
        flat = np.concatenate(at)
        gold = [numbers.gold[a] for a in at]
        parts.append((AnswerSet.from_rows(rows, gold, numbers.features[flat].astype(np.float64), score), flat))
    (asked_about, _), (measured, places) = parts
    assert asked_about.features is not None and measured.features is not None
    refine = RefineHead(asked_about.features, measured.features, fit, NEW_PAIR_WEIGHT)
    bench = Bench(asked_about, measured, refine, "group", blind, pool_share=1.0)
    return Experiment(bench, facts(bench), seed, numbers.words[places])


def which_prompts(setting: Setting) -> slice:
    """Return the positions of the prompts of a setting."""
    if setting.prompts == "all":
        return slice(None)
    first = FIRST[setting.task]
    return slice(first) if setting.prompts == "first" else slice(first, None)


def policy_columns(numbers: Numbers, policy: str, seed: int) -> tuple[dict[str, np.ndarray], str]:
    """Return the columns that a policy score is made from, and the score's name."""
    if policy == BASE:
        return {"logprobs": numbers.reference}, "logprob"
    if policy.startswith(TUNED):
        at = numbers.examples.tolist().index(int(policy.removeprefix(TUNED)))
        return {"logprobs": numbers.tuned[:, at], "reference_logprobs": numbers.reference}, "logprob_ratio"
    if not policy.startswith(INFORMED):
        columns = {"logprobs": numbers.logprobs, "reference_logprobs": numbers.reference, "num_tokens": numbers.tokens}
        return columns, policy
    correlation = float(policy.removeprefix(INFORMED))
    noise = np.random.default_rng(derive_seed("informed", seed)).standard_normal(len(numbers.gold))
    z = np.concatenate(
        [z_scores(numbers.gold[a:b]) for a, b in zip(numbers.offsets, numbers.offsets[1:], strict=False)]
    )
    return {"logprobs": correlation * z + np.sqrt(1 - correlation**2) * noise}, "logprob"


def facts(bench: Bench) -> dict[str, float]:
    """Return what is known before any label is given."""
    pool = bench.pool
    blind = np.isin(pool.groups("group"), list(bench.blind))
    accuracy = pool.pair_accuracy(pool.rewards)
    bounds = list(zip(pool.offsets, pool.offsets[1:], strict=False))
    together = {"policy_knows": pool.policy, "proxy_knows": pool.rewards}
    found = {
        name: float(
            np.mean([np.mean(z_scores(values[a:b]) * z_scores(pool.gold[a:b])) for a, b in bounds if b - a > 1])
        )
        for name, values in together.items()
    }
    distance = np.array(pool.table.column("kendall_distance"))
    found |= {
        **{f"proxy_accuracy_{name}": mean(accuracy[at]) for name, at in (("blind", blind), ("elsewhere", ~blind))},
        "kendall_finds_blind": auroc(distance, blind),
        "share_of_ties": 1 - len(pool.pairs) / sum(int(b - a) * int(b - a - 1) // 2 for a, b in bounds),
        "pool_prompts": float(len(pool)),
        "pool_blind_share": float(blind.mean()),
    }
    gold = [pool.gold[a:b] for a, b in bounds]
    return found | {f"found_{name}": value for name, value in detection(pool.table, gold).items()}


def mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN, or NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
